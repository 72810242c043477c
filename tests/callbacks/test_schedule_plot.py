from pathlib import Path

from conftest import ROOT, SMALL
from PIL import Image


def test_a_schedule_is_drawn_without_training(run):
    printed = run("fit", f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--trainer.callbacks+=SchedulePlot")
    assert "30 steps: rate 0.005 at first, 0.05 at most" in printed
    with Image.open(next(Path().rglob("schedule.png"))) as picture:
        assert min(picture.size) > 300
    assert not list(Path().rglob("*.ckpt"))
