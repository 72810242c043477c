import pytest
from lightning.pytorch.callbacks import ProgressBar

from cifar_lightning.callbacks import progress_line
from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.progress_line import Clock, duration


def test_figures_can_be_read(monkeypatch):
    metrics = {"v_num": "", "lr": 0.00001, "val_loss": 1.23456, "step": 3}
    monkeypatch.setattr(ProgressBar, "get_metrics", lambda *args: metrics)
    assert RunProgressBar().get_metrics(None, None) == {"lr": "1.00e-05", "val_loss": "1.235", "step": 3}


def test_the_time_left_is_by_the_parts_that_are_done_since_the_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now[0])
    clock = Clock()
    assert clock.seconds_left(10, 40) is None  # a resume, or steps that were compiled first
    now[0] += 5.0
    assert clock.seconds_left(20, 40) == pytest.approx(10.0)
    assert clock.seconds_left(20, None) is None
    assert clock.seconds_left(20, float("inf")) is None
    assert clock.seconds_left(50, 40) == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3599, "59:59"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_evaluation_of_a_stream_has_no_time_left(monkeypatch):
    shown = []
    monkeypatch.setattr(progress_line.ProgressLine, "is_due", True)
    monkeypatch.setattr(progress_line.ProgressLine, "show", lambda line, *state: shown.append(state))
    bar = RunProgressBar()
    bar._begin_evaluation(begins_line=False)
    for total in (float("inf"), 4):
        bar._count("validation", [], total)
    assert shown[0][3] is None
    assert shown[1][3] >= 0
