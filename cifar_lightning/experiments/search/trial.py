"""One trial of a search: its training, and its reports to Optuna."""

import gc
import math
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import Trial

from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.cli.mistakes import DEBUG_VARIABLE
from cifar_lightning.errors import DivergenceError
from cifar_lightning.experiments.run import Run
from cifar_lightning.files import is_no_room


class TrialReport(Callback):
    """Reports each validated epoch to the study, and stops trials that are pruned or have diverged.

    As with early stopping, the checkpoints remain and can be evaluated and resumed.

    Args:
        trial: The trial.
        metric: The metric to report.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.pruned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a resumed trial that had already been pruned before its study was told."""
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if trainer.current_epoch and max(reported, default=-1) == trainer.current_epoch - 1:
            self._judge(trainer, reported[trainer.current_epoch - 1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask whether to continue."""
        validated = RunReport.of(trainer).validated
        if not validated:
            return
        loss, value = validated["val_loss"], validated[self.metric]
        value = value if math.isfinite(loss) else math.nan
        self.trial.report(value, trainer.current_epoch)
        self._judge(trainer, value)
        if sys.__stdout__ is not None and sys.__stdout__.isatty():
            line = f"trial {self.trial.number}, epoch {trainer.current_epoch + 1}: {self.metric} {value:.4f}"
            print(line, end="\r", file=sys.__stdout__, flush=True)

    def _judge(self, trainer: Trainer, value: float) -> None:
        if math.isnan(value) or self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def train(run: Run, report: TrialReport) -> str:
    """Train, with all output in the run's log, and save the result.

    Args:
        run: The trial's run.
        report: The callback that reports it.

    Returns:
        The error; "" if there was none. A diverged run is marked as pruned in the report.

    Raises:
        KeyboardInterrupt: If training was interrupted; it can be resumed.
        OSError: If the disk is full, which is no fault of the trial; it can be resumed too.
    """
    threads = torch.get_num_threads()
    try:
        with run.log.open("w", buffering=1) as log, redirect_stdout(log):
            result = run.train([report])
        replace(result, pruned=report.pruned).save(run.result_file)
    except SystemExit as stop:
        if stop.code != 2:  # Lightning's way to end after Ctrl-C
            raise KeyboardInterrupt from None
        return f"options that do not parse: {' '.join(run.arguments)}"  # the parser has said what is wrong
    except DivergenceError as error:
        report.pruned = True
        return str(error)
    except Exception as exception:
        if os.environ.get(DEBUG_VARIABLE) or is_no_room(exception):
            raise
        return f"{type(exception).__name__}: {exception}".strip()
    finally:
        torch.set_num_threads(threads)  # a training that fails leaves the number that it chose
    return ""


def free_memory() -> None:
    """Free the last trial's images, graphs and compiled code."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
