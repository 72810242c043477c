import pytest
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import Progress

from cifar_lightning.callbacks.progress_bar import RunProgressBar


def test_figures_can_be_read(monkeypatch):
    metrics = {"v_num": "", "lr": 0.00001, "val_loss": 1.23456, "step": 3}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *args: metrics)
    assert RunProgressBar().get_metrics(None, None) == {"lr": "1.00e-05", "val_loss": "1.235", "step": 3}


@pytest.mark.parametrize("started", [True, False])
def test_the_bar_stops_with_the_fit(started):
    bar = RunProgressBar()
    if started:
        bar.progress = Progress()
        bar.progress.start()
    bar.on_fit_end(None, None)
    assert bar.progress is None or not bar.progress.live.is_started
