"""How a command ends that is told to stop: real processes, with the exit status that a shell expects."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from cifar_lightning import MLPClassifier
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


@pytest.mark.parametrize(
    ("where", "advice"),
    [
        ("training_step", "; the batch does not fit into memory: try --data.batch_size 16, got 32"),
        ("validation_step", "; the batch does not fit into memory: try --data.eval_batch_size 20, got 40"),
    ],
)
def test_a_gpu_without_memory_left_ends_in_a_batch_size_to_try(fail, monkeypatch, where, advice):
    def fill(self, batch, batch_idx):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(MLPClassifier, where, fill)
    sizes = ["--data.batch_size=32", "--data.eval_batch_size=40"]
    message = fail("fit", *FLAGS, *sizes, "--trainer.num_sanity_val_steps=0")
    assert message == f"error: CUDA out of memory. Tried to allocate 2.00 GiB{advice}\n"
