"""The report of a training run: one line per epoch, learning curves, and a table."""

import time
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.figure import Figure
from rich import get_console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cifar_lightning.analysis.curve_plots import best_epoch
from cifar_lightning.analysis.plots import draw_learning_curves
from cifar_lightning.callbacks.progress_bar import epoch_label
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_next
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.epoch_metrics import Row, better
from cifar_lightning.training.lightning_internals import (
    finished_epochs,
    is_fitting,
    resumes_within_epoch,
    validation_is_due,
)
from cifar_lightning.training.messages import say
from cifar_lightning.training.run_events import RunEvents, log_best

SPLITS = ("train", "val")
#: The beginning of the names of validation metrics.
VALIDATION = "val_"


class RunReport(Callback):
    """Collects each epoch's metrics, prints a line per epoch, and at the end plots `learning_curves.png`.

    It uses the metrics that the module logs: train_loss, train_accuracy, val_loss, val_accuracy. They are stored in
    checkpoints, so a resumed run reports all epochs. Of several validations in an epoch, it uses the one with the
    lowest loss, as `best.ckpt` does.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import RunReport
        >>> trainer = Trainer(max_epochs=5, logger=False, callbacks=[RunReport()])
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        #: The metrics of this epoch's best validation; {} if there was none.
        self.validated: Row = {}
        self._due: Row = {}  # the same without a validation that only runs because training stops
        self._epoch = 0  # the current epoch, from 1, while it has no row yet; otherwise 0
        self._epoch_start = 0.0
        self._resumed: Row = {}  # metrics so far of the epoch in which the checkpoint was written
        self._trainer: Trainer | None = None

    def __repr__(self) -> str:
        best = best_epoch(self.rows)
        found = f", lowest validation loss {best['val_loss']:.4g} in epoch {best['epoch']:.0f}" if best else ""
        return f"RunReport({len(self.rows)} epoch{'s' * (len(self.rows) != 1)}{found})"

    @classmethod
    def of(cls, trainer: Trainer) -> "RunReport":
        """The report of a trainer that has one."""
        return next(callback for callback in trainer.callbacks if isinstance(callback, cls))  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of finished epochs, and continue the epoch in which the checkpoint was written."""
        finished = finished_epochs(trainer)
        self.rows, self._epoch = [row for row in self.rows if row["epoch"] <= finished], 0
        if resumes_within_epoch(trainer):
            self._begin_epoch(trainer, self._resumed)
        self._resumed = {}
        for logger in trainer.loggers:
            if isinstance(logger, RunEvents):
                logger.arrange_charts()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time."""
        self._close_epoch(trainer)
        self._begin_epoch(trainer, {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the validation if it is this epoch's best."""
        if trainer.sanity_checking or not is_fitting(pl_module):
            return
        found = _validation(trainer.callback_metrics)
        self.validated = better(found, self.validated)
        if validation_is_due(trainer):
            self._due = better(found, self._due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the last epoch, and print why training stopped early, if it did."""
        self._close_epoch(trainer)
        for callback in trainer.early_stopping_callbacks:
            if trainer.should_stop and trainer.is_global_zero and callback.stopping_reason_message:
                say(f"stopped early: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot and print the report, and suggest a next step."""
        self._report(trainer)
        checkpoints = [run_folder(trainer) / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        newest = next((path for path in checkpoints if path.is_file()), None)
        if is_writer(trainer) and self.rows and newest:
            say_next(f"cifar-lightning test --ckpt_path {newest}")

    def _report(self, trainer: Trainer) -> None:
        folder = run_folder(trainer)
        if self.rows:
            log_best(trainer.loggers, best_epoch(self.rows) or {}, trainer.global_step)
        if is_writer(trainer) and self.rows:
            folder.mkdir(parents=True, exist_ok=True)
            data_set = data_set_name(trainer)
            title = f"{folder.parent.name} on {data_set}"
            draw_learning_curves(self.rows, folder / "learning_curves.png", title, self._rates())
            get_console().print(_table(self.rows, data_set, folder))

    def plot(self, title: str = "Learning curves") -> Figure:
        """Plot the epochs so far. A notebook displays the returned figure."""
        return draw_learning_curves(self.rows, title=title, rates=self._rates())

    def _rates(self) -> Sequence[tuple[float, float]]:
        """The learning rates that an `MLPClassifier` records; empty for other modules."""
        module = self._trainer.lightning_module if self._trainer else None
        return module.cycle.rates.points if isinstance(module, MLPClassifier) else ()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report the epochs of an interrupted run."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the metrics of the current epoch."""
        present = self._row(self._trainer, self._due) if self._epoch and self._trainer else {}
        # If its end has been processed, it has all of its metrics.
        whole = [present] if present and self._trainer and finished_epochs(self._trainer) >= self._epoch else []
        return {"rows": self.rows + whole, "present": present}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved rows."""
        self.rows, self._resumed = state_dict["rows"], state_dict["present"]

    def _begin_epoch(self, trainer: Trainer, before: Row) -> None:
        """Begin an epoch; `before` has its metrics from a checkpoint that was written during it."""
        self._trainer, self._epoch = trainer, finished_epochs(trainer) + 1
        self._epoch_start = time.perf_counter() - before.get("seconds", 0.0)
        self.validated = self._due = _validation(before)

    def _close_epoch(self, trainer: Trainer) -> None:
        # Not in on_train_epoch_end, which comes before the module has logged the epoch's metrics.
        if not self._epoch or "train_loss" not in trainer.callback_metrics:
            return
        self.rows.append(self._row(trainer, self.validated))
        self._epoch = 0
        if trainer.is_global_zero:
            self._print_epoch(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        console, row = get_console(), self.rows[-1]
        if not (console.is_terminal or console.is_jupyter):
            console.print(_epoch_line(row), highlight=False, soft_wrap=True)
            return
        label, mark = epoch_label(int(row["epoch"]), trainer), "  best"
        line = Text(_short_epoch_line(row, label, console.width - len(mark)))
        if row is best_epoch(self.rows) and not isnan(row["val_loss"]):
            line.append(mark, "green")
        console.print(line, no_wrap=True)

    def _row(self, trainer: Trainer, validated: Row) -> Row:
        # (If a module configures no optimizer, Lightning adds one without parameters.)
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        return {
            "epoch": float(self._epoch),
            "seconds": time.perf_counter() - self._epoch_start,
            "lr": next(iter(rates), nan),
        } | {
            name: validated.get(name, float(value))
            for name, value in trainer.callback_metrics.items()
            if name in validated or not name.startswith(VALIDATION)  # may be from an earlier epoch
        }


def _validation(metrics: Mapping[str, Tensor | float]) -> Row:
    """The metrics of the last validation among others."""
    return {name: float(value) for name, value in metrics.items() if name.startswith(VALIDATION)}


def _epoch_line(row: Row) -> str:
    """An epoch's line in a log, with the metrics' names."""
    shown = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    figures = "  ".join(f"{name} {row[name]:.4f}" for name in shown if name in row)
    return f"epoch {row['epoch']:3.0f}  {figures}  lr {row['lr']:.2e}  {row['seconds']:.1f} s"


def _short_epoch_line(row: Row, epoch: str, width: int) -> str:
    """An epoch's line in a terminal: with words if it fits into the width, otherwise only numbers."""
    figures = {}
    for split in SPLITS:
        shown = {f"{split}_loss": ".4f", f"{split}_accuracy": ".1%"}
        if f"{split}_loss" in row:
            figures[split] = [f"{row[name]:{form}}" for name, form in shown.items() if name in row]
    parts = [f"{split} loss {', '.join(values)}" for split, values in figures.items()]
    line = "  ".join([epoch, *parts, f"{row['seconds']:.1f} s"])
    if len(line) <= width:
        return line
    return "  ".join([epoch, *(f"{split} {' '.join(values)}" for split, values in figures.items())])


def _table(rows: list[Row], data_set: str, folder: Path) -> Table:
    table = Table(show_header=False, title=f"Training on {data_set}")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    if best := best_epoch(rows):
        newest = [row for row in rows if "val_loss" in row][-1]
        last = "last epoch" if newest is rows[-1] else "last epoch with a validation"
        shown = [("best epoch, by validation loss", best), (last, newest)]
        if isnan(best["val_loss"]):
            table.add_row(shown.pop(0)[0], "none: the loss was never a number")
        elif best is newest:
            shown = [(f"best and {last}", best)]
        for which, row in shown:
            table.add_row(which, f"{row['epoch']:.0f}")
            table.add_row("  validation loss", f"{row['val_loss']:.4f}")
            if "val_accuracy" in row:  # other modules may not log it
                table.add_row("  validation accuracy", f"{row['val_accuracy']:.2%}")
    seconds = [row["seconds"] for row in rows]
    later = f", {sum(seconds[1:]) / len(seconds[1:]):.2f} s per epoch after the first" if len(rows) > 1 else ""
    table.add_row("time", f"{sum(seconds):.1f} s{later}")  # the first may include compilation
    table.add_row("written to", str(folder))
    return table
