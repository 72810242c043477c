"""One trial of a search: its folder, the file that shows its process lives, and its training."""

import fcntl
import gc
import math
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import IO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import Trial

from cifar_lightning.cli.main import CLI
from cifar_lightning.cli.mistakes import DEBUG_VARIABLE

#: In a trial's folder while it trains: the file that its process holds locked.
RUNNING = ".running"


class TrialReport(Callback):
    """Report each validation to the study, and end a training that the pruner gives up or that has diverged.

    Like early stopping, this leaves the training's checkpoints, which can be evaluated and resumed.

    Args:
        trial: What to report to.
        metric: The metric that is reported.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.pruned = False
        self.value: float | None = None
        self._lowest, self._validations = math.inf, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask whether to go on."""
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loss, value = metrics["val_loss"], metrics[self.metric]
        diverged = not math.isfinite(loss)
        if loss < self._lowest:
            self._lowest, self.value = loss, value
        self.trial.report(math.nan if diverged else value, self._validations)
        self._validations += 1
        if diverged or self.trial.should_prune():
            self.pruned = trainer.should_stop = True
        if sys.__stdout__ is not None and sys.__stdout__.isatty():
            line = f"trial {self.trial.number}, validation {self._validations}: {self.metric} {value:.4f}"
            print(line, end="\r", file=sys.__stdout__, flush=True)


def trial_folder(folder: Path, number: int) -> Path:
    """Where trial `number` of the study in `folder` is written."""
    return folder / f"trial_{number:03}"


def begin(folder: Path) -> IO[str]:
    """Make a trial's folder, with a file in it that stays locked for as long as this process lives."""
    folder.mkdir()
    running = (folder / RUNNING).open("w")
    fcntl.flock(running, fcntl.LOCK_EX)
    return running


def is_alive(folder: Path) -> bool:
    """Whether the process that trains a trial still lives: the lock of one that was killed is gone."""
    try:
        with (folder / RUNNING).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # killed before it made the file
        return False
    return False


def train(arguments: list[str], flags: list[str], report: TrialReport, folder: Path) -> str:
    """Train once, with everything that is printed in the folder's log.

    Args:
        arguments: Of `lightning`, the same in all trials.
        flags: This trial's own.
        report: Where the trial's value is found afterwards.
        folder: Where everything is written.

    Returns:
        What went wrong; "" if nothing did.
    """
    threads = torch.get_num_threads()
    try:
        with (folder / "log.txt").open("w", buffering=1) as log, redirect_stdout(log):
            CLI([*arguments, *flags], [report], folder)
    except SystemExit as stop:
        if stop.code != 2:  # 2 is the parser's, which has said what is wrong
            raise
        return f"options that do not parse: {' '.join(flags)}"
    except Exception as exception:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return f"{type(exception).__name__}: {exception}".strip()
    finally:
        torch.set_num_threads(threads)  # a training that fails leaves the number that it chose
    if report.value is None and not report.pruned:
        return f"no result: expected {report.metric} after an epoch, received none"
    return ""


def free_memory() -> None:
    """Let go of the last trial: its images, its graphs, and the code that was compiled for them."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
