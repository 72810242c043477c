"""A sweep on a DataModule of one's own, whose name its checkpoints keep."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

from cifar_lightning.experiments.sweep.command import main

QUIET = [flag for flag in SMALL if flag.startswith("--trainer")]
TINY = ["--model.hidden_sizes=1x8", "--trainer.max_epochs=1"]
VARY = "--vary={model.lr: [0.01, 0.02]}"

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _mine(monkeypatch):
    """A module of one's own, which no test has imported yet."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copy(ROOT / "tests" / "cli" / "own" / "mine.py", "mine.py")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()


def newest():
    return max(Path("runs").glob("*/sweep_*"), key=lambda folder: folder.stat().st_ctime_ns)


def test_an_evaluation_of_a_copy_takes_the_data_that_it_was_trained_on(run, capfd):
    main([VARY, "--data=mine.Noise", "--data.size=32", *TINY, *QUIET])
    assert "Sweep on unnamed data" in capfd.readouterr().out
    for name in ("best", "last"):
        checkpoint = newest() / "lr=0.01" / "checkpoints" / f"{name}.ckpt"
        assert torch.load(checkpoint, weights_only=True)["class_paths"]["data"] == "mine.Noise"
        assert "on unnamed data" in run("test", f"--ckpt_path={checkpoint}", *QUIET)


def test_last_is_that_of_the_newest_sweep(run):
    main([VARY, "--data=mine.Half", *TINY, *SMALL])
    run("fit", "--model=mine.Wider", *TINY, *SMALL)  # a newer training, of another model and other data
    main(["--ckpt_path=last", "--trainer.max_epochs=2"])
    last = torch.load(newest() / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["class_paths"] == {"model": "cifar_lightning.MLPClassifier", "data": "mine.Half"}
    assert last["epoch"] == 1
