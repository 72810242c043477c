"""How a command ends that is told to stop: real processes, with the exit status that a shell expects."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL

from cifar_lightning.export.checkpoint_files import read_checkpoint

FLAGS = [*SMALL, "--trainer.max_epochs=100000", "--model.hidden_sizes=1x8", "--execution.compile=never"]


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_leaves_a_checkpoint_and_says_that_it_was_stopped(how, status):
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning", "fit", *FLAGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A job in the background ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch   2"):
            process.send_signal(how)
            break
    process.communicate(timeout=60)
    assert process.returncode == status
    (last,) = Path().glob("runs/*/*/checkpoints/last.ckpt")
    assert read_checkpoint(last)["epoch"] >= 1
    assert (last.parent.parent / "learning_curves.png").exists()
