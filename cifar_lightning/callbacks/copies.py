"""What each network of a `StackedClassifier` leaves behind: checkpoints, learning curves, and a line in a table."""

import csv
import io
from math import inf
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table

from cifar_lightning.analysis.plots import draw_learning_curves
from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.run_folder import is_writer, run_folder
from cifar_lightning.files import write_whole
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.copy_logger import CopyLogger
from cifar_lightning.training.lightning_internals import is_within_a_step
from cifar_lightning.training.stacked_classifier import StackedClassifier


class CopyCheckpoints(Checkpoint):
    """Keeps each copy's weights of the lowest validation loss as `best.ckpt`, and the present ones as `last.ckpt`.

    They are in the copy's own folder, and are what evaluations and `MLPClassifier.load_from_checkpoint` take. A loss
    that is no number is never the best. The copies' weights of a training that is resumed come along.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the checkpoints of a training that is resumed along into its new folder."""
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        resumed = Path(trainer.ckpt_path).parent.parent if trainer.ckpt_path else run_folder(trainer)
        for each in pl_module.copies if resumed != run_folder(trainer) else []:
            for name in ("best", "last"):
                old, new = (_path(folder, each, name) for folder in (resumed, run_folder(trainer)))
                if old.is_file():
                    new.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(new, old.read_bytes())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best, and after a validation within an epoch the last."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        for each in pl_module.copies:
            if each.is_new_best:
                save_copy(trainer, each, "best")
                each.is_new_best = False
        if not trainer.is_last_batch:
            self._save_last(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last."""
        self._save_last(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the last when the training is interrupted between two steps."""
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException) and not is_within_a_step(trainer)
        if interrupted and trainer.global_step:
            self._save_last(trainer, pl_module)

    def _save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        for each in pl_module.copies:
            if each.stopped_epoch in (None, trainer.current_epoch + 1):
                save_copy(trainer, each, "last")


def save_copy(trainer: Trainer, each: Copy, name: str) -> None:
    """Write a copy's checkpoint into its folder, whole or not at all."""
    classifier = each.classifier
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    checkpoint = {
        # (Clones: the tensors may be views of the stack, of which all would be written.)
        "state_dict": {key: value.clone() for key, value in classifier.state_dict().items()},
        "hyper_parameters": dict(classifier.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "classes": classifier.classes,
        "datamodule_hyper_parameters": dict(getattr(data, "hparams", {})),
    }
    content = io.BytesIO()
    torch.save(checkpoint, content)
    path = _path(run_folder(trainer), each, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _path(folder: Path, each: Copy, name: str) -> Path:
    return folder / each.name / "checkpoints" / f"{name}.ckpt"


class CopyReports(Callback):
    """Prints a line an epoch; at the end draws each copy's learning curves, and writes and prints a table of all."""

    def __init__(self) -> None:
        self._epochs = 0  # that have a line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin after the epochs that are known."""
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        self._epochs = pl_module.copies.epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line, and give TensorBoard's tables of hyperparameters the best accuracies."""
        self._print_line(trainer, pl_module)
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        best = {each.name: each.best for each in pl_module.copies if each.best}
        for logger in trainer.loggers:
            if isinstance(logger, CopyLogger) and logger.name in best:
                logger.log_best_accuracy(best[logger.name]["val_accuracy"])

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        if pl_module.copies.epochs == self._epochs:
            return
        self._epochs = pl_module.copies.epochs
        console, best = get_console(), pl_module.copies.best
        if console.is_terminal:  # where the progress bar is to be seen
            return
        shown = f"best so far: {best.name}, val_accuracy {best.best['val_accuracy']:.4f}" if best else "no validation"
        stopped = len(pl_module.copies) - len(pl_module.copies.active)
        console.print(
            f"epoch {self._epochs:3}  {shown}" + (f", {stopped} stopped" if stopped else ""),
            highlight=False,
            soft_wrap=True,
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, write and print the report."""
        assert isinstance(pl_module, StackedClassifier), "it is for the copies of one"
        copies = [each for each in pl_module.copies if each.rows]
        if not is_writer(trainer) or not copies:
            return
        folder, data_set = run_folder(trainer), trainer.datamodule.data_set  # type: ignore[attr-defined]
        for each in copies:
            place = folder / each.name
            place.mkdir(parents=True, exist_ok=True)
            draw_learning_curves(each.rows, place / "learning_curves.png", f"{each.name} on {data_set}")
        write_table(copies, folder / "sweep.csv")
        get_console().print(_table(copies, f"Sweep on {data_set}, the lowest validation loss of each"))
        get_console().print(f"everything is in {folder}", highlight=False, soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report what an interrupted training came to."""
        if isinstance(exception, KeyboardInterrupt):
            self.on_fit_end(trainer, pl_module)


def write_table(copies: list[Copy], path: Path) -> None:
    """Write a row for each copy: what is varied, its best epoch, and the name of its folder."""
    options = list(copies[0].values)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*options, "epochs", "best_epoch", "val_loss", "val_accuracy", "folder"])
    for each in copies:
        best = each.best
        figures = [int(best["epoch"]), best["val_loss"], best["val_accuracy"]] if best else ["", "", ""]
        writer.writerow([*each.values.values(), len(each.rows), *figures, each.name])
    write_whole(path, text.getvalue().encode())


def _table(copies: list[Copy], title: str) -> Table:
    table = Table("network", title=title, box=SIMPLE)
    for column in ("epochs", "best epoch", "val loss", "val accuracy"):
        table.add_column(column, justify="right")
    for each in sorted(copies, key=lambda each: each.best.get("val_loss", inf)):
        best = each.best
        figures = [f"{best['epoch']:.0f}", f"{best['val_loss']:.4f}", f"{best['val_accuracy']:.2%}"] if best else []
        table.add_row(each.name, str(len(each.rows)), *(figures or ["none", "", ""]))
    return table


class SweepProgressBar(RunProgressBar):
    """The progress bar of a run, with the name of the best copy so far."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics as text."""
        metrics = super().get_metrics(trainer, pl_module)
        best = pl_module.copies.best if isinstance(pl_module, StackedClassifier) else None
        return {"best": best.name, **metrics} if best else metrics
