import math
from dataclasses import fields
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cifar_lightning import LayerSignal, LRSweep
from cifar_lightning.analysis.plots import draw_learning_curves, draw_schedule, draw_signals, draw_sweep

QUANTITIES = [field.name for field in fields(LayerSignal)]
LRS = [1e-5 * 1.1**step for step in range(150)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, without files."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    return drawn


def signal_rows(value, epochs=(0, 1), **others):
    values = dict.fromkeys(QUANTITIES, value) | others
    return [{"epoch": epoch, "layer": layer, **values} for epoch in epochs for layer in range(4)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_signals_that_have_vanished_or_exploded_are_drawn(value):
    draw_signals(signal_rows(value), Path("signals.png"), "title")
    assert Path("signals.png").stat().st_size > 1000


@pytest.mark.parametrize(("share", "titles"), [(1.0, QUANTITIES[:4]), (0.5, QUANTITIES)])
def test_the_share_of_the_input_is_drawn_where_there_is_dropout(figures, share, titles):
    draw_signals(signal_rows(0.5, epochs=(0, 1, 2), input_share=share), Path(), "title")
    drawn = {axes.get_title(): len(axes.lines) for axes in figures[0].axes if axes.get_title()}
    assert drawn == {title.replace("_", " "): 3 for title in titles}


@pytest.mark.parametrize(("momenta", "axes"), [([0.9] * 30, 1), ([0.95 - step / 100 for step in range(30)], 2)])
def test_momentum_is_drawn_if_it_moves(figures, momenta, axes):
    epochs = [step / 10 for step in range(30)]
    draw_schedule([0.1] * 30, momenta, epochs, Path())
    assert len(figures[0].axes) == axes
    assert list(figures[0].axes[0].lines[0].get_xdata()) == epochs


def test_learning_curves_show_what_is_known(figures):
    first = {"epoch": 1.0, "lr": 0.1, "train_loss": 2.0, "val_loss": 1.9, "val_accuracy": 0.3}
    rows = [first, {"epoch": 2.0, "lr": 0.1, "train_loss": 1.0}]
    draw_learning_curves(rows, Path(), "title")
    loss, accuracy, lr = figures[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0], [1.9]]
    assert [len(axes.lines) for axes in (accuracy, lr)] == [1, 1]


def test_a_suggestion_lies_on_the_smoothed_loss(figures):
    sweep = LRSweep(LRS, [2.3 - 0.01 * step for step in range(150)], 150)
    draw_sweep(sweep, {"valley": LRS[70]}, Path(), "valley", "title")
    *_, point, _ = figures[0].axes[0].lines
    assert point.get_label() == f"valley: {LRS[70]:.2e} (taken)"
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (LRS[70], sweep.smoothed[70])


@pytest.mark.parametrize("losses", [[math.inf] * 4, [2.3, 2.2, math.nan, math.nan]])
def test_a_failed_sweep_is_drawn(losses):
    draw_sweep(LRSweep(LRS[:4], losses, 150), {}, Path("sweep.png"), "valley", "title")
    assert Path("sweep.png").stat().st_size > 1000
