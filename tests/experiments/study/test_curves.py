import math
from dataclasses import asdict

import pytest
from conftest import make_result as result
from matplotlib.axes import Axes
from PIL import Image

from cifar_lightning.experiments.study.curves import Band, curve, draw_curves


def test_a_band_has_mean_and_range_of_the_seeds_up_to_the_first_that_ends():
    some = [result("a", 1, (2.0, 1.0, 4.0, 5.0)), result("a", 2, (3.0, 2.0)), result("a", 3, (4.0, 6.0, 1.0))]
    band = Band.of(some, "val_loss")
    assert asdict(band) == {
        "epochs": [1.0, 2.0],
        "seconds": [2.0, 4.0],
        "mean": [3.0, 3.0],
        "low": [2.0, 1.0],
        "high": [4.0, 6.0],
    }
    tails = [band.tail(curve(each, "val_loss")) for each in some]
    assert tails == [[(2.0, 1.0), (3.0, 4.0), (4.0, 5.0)], [], [(2.0, 6.0), (3.0, 1.0)]]


@pytest.mark.parametrize("losses", [(math.nan, math.nan, math.nan), (math.inf,)])
def test_seeds_without_a_finite_value_leave_no_band_and_the_others_go_on_alone(losses):
    other = result("a", 1)
    band = Band.of([other, result("a", 2, losses)], "val_loss")
    assert band.epochs == band.mean == []
    assert band.tail(curve(other, "val_loss")) == [(1.0, 2.0), (2.0, 1.5), (3.0, 1.8)]


def test_epochs_without_a_validation_are_in_no_band():
    some = [result("a", 1), result("a", 2)]
    del some[0].rows[1]["val_loss"]
    band = Band.of(some, "val_loss")
    assert band.epochs == [1.0, 3.0]
    assert band.seconds == [2.0, 6.0]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, by the way in which it is."""
    drawn = {"plot": [], "fill_between": []}
    for name in drawn:
        method = getattr(Axes, name)

        def draw(self, *args, name=name, method=method, **kwargs):
            drawn[name].append((*args, kwargs.get("label")))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, draw)
    return drawn


def test_curves_are_a_line_a_band_and_a_star_for_each_config(drawn, tmp_path):
    draw_curves([result("a", 1), result("b", 1), result("a", 2, (3.0, 2.5, 2.8, 2.4))], tmp_path / "curves.png")
    loss = drawn["plot"][: len(drawn["plot"]) // 2]
    lines = [plot for plot in loss if plot[2] != "*"]
    assert lines == [
        ([1.0, 2.0, 3.0], [2.5, 2.0, 2.3], "a"),
        ((3.0, 4.0), (2.8, 2.4), None),
        ([1.0, 2.0, 3.0], [2.0, 1.5, 1.8], "b"),
    ]
    assert [plot[:2] for plot in loss if plot[2] == "*"] == [(2.0, 1.5), (2.0, 1.5)]
    assert [fill[1:3] for fill in drawn["fill_between"]] == [
        ([2.0, 1.5, 1.8], [3.0, 2.5, 2.8]),
        ([0.3, 0.4, 0.5], [0.3, 0.4, 0.5]),
    ]
    assert Image.open(tmp_path / "curves.png").size == (2600, 1000)  # 13 x 5 inches


def test_what_is_not_finite_is_left_out(drawn, tmp_path):
    draw_curves([result("a", 1), result("c", 1, (math.nan, math.nan))], tmp_path / "curves.png")
    assert ([], [], "c") in drawn["plot"]  # in the legend all the same
    assert ([1.0, 2.0], [0.3, 0.4], "c") in drawn["plot"]
    assert not [plot for plot in drawn["plot"] if plot[2] == "*" and plot[1] < 0.4]


@pytest.mark.parametrize(("highest", "seen"), [(2.6, 2.65), (100.0, 2.05)])
def test_only_losses_far_from_all_others_leave_the_picture(monkeypatch, tmp_path, highest, seen):
    limits = []
    monkeypatch.setattr(Axes, "set_ylim", lambda self, low, high: limits.append((low, high)))
    draw_curves([result("a", 1, (highest, *[2.0] * 10, *[1.5] * 19))], tmp_path / "curves.png")
    assert limits[0] == pytest.approx((1.45, seen))
