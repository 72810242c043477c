"""The report of a sweep: one line per epoch, each network's learning curves, and tables of all networks."""

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich import get_console

from cifar_lightning.analysis.plots import draw_learning_curves, draw_sweep_curves
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.experiments.results import Result, make_table, write_csv, write_markdown
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.copy_logger import CopyLogger
from cifar_lightning.training.messages import say
from cifar_lightning.training.stacked_classifier import StackedClassifier

#: Files that a sweep writes next to its networks' folders; the tables only if something was validated.
WRITTEN = ("results.csv", "results.md", "sweep.png")
#: The option that networks of one name differ in.
SEED = "seed_everything"


class SweepReport(Callback):
    """Prints a line per epoch, and at the end plots the learning curves and writes and prints the tables.

    `sweep.png` has the curves of all networks in one plot.

    Args:
        command: The command, for the table.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._epochs = 0  # number of epochs with a line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start after the known epochs."""
        self._epochs = _stack(pl_module).copies.epochs
        for logger in trainer.loggers:
            if isinstance(logger, CopyLogger):
                logger.arrange_charts()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        self._print_line(_stack(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line, and add each network's best epoch to TensorBoard's hyperparameter table."""
        self._print_line(_stack(pl_module))
        for logger in trainer.loggers:
            if isinstance(logger, CopyLogger):
                logger.log_best(trainer.global_step)

    def _print_line(self, module: StackedClassifier) -> None:
        best = module.copies.best
        if module.copies.epochs == self._epochs:
            return
        self._epochs = module.copies.epochs
        shown = f"best so far: {best.name}, val_accuracy {best.best['val_accuracy']:.4f}" if best else "no best yet"
        stopped = len(module.copies) - len(module.copies.active)
        end = f", {stopped} stopped" if stopped else ""
        say(f"epoch {self._epochs:3}  {shown}{end}", wrap=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot, write and print the report."""
        copies = [each for each in _stack(pl_module).copies if each.rows]
        if not is_writer(trainer) or not copies:
            return
        folder, data_set = run_folder(trainer), data_set_name(trainer)
        for each in copies:
            place = folder / each.name
            place.mkdir(parents=True, exist_ok=True)
            draw_learning_curves(each.rows, place / "learning_curves.png", f"{each.name} on {data_set}")
        draw_sweep_curves({each.name: each.rows for each in copies}, folder / "sweep.png", f"Sweep on {data_set}")
        write_tables(copies, data_set, folder, self.command)
        best = _stack(pl_module).copies.best
        checkpoint = folder / best.name / "checkpoints" / "best.ckpt" if best else None
        then = f"cifar-lightning test --ckpt_path {checkpoint}" if checkpoint and checkpoint.is_file() else ""
        say_where(folder, [name for name in WRITTEN if (folder / name).exists()], then)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report an interrupted sweep."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self.on_fit_end(trainer, pl_module)


def write_tables(copies: Sequence[Copy], data_set: str, folder: Path, command: str) -> None:
    """Write `results.csv` and `results.md`, and print what fits on the screen.

    Args:
        copies: The networks; those that were never validated are left out.
        data_set: Name of the data set.
        folder: Output folder.
        command: The command that made them.
    """
    results = make_results([each for each in copies if any("val_loss" in row for row in each.rows)], data_set)
    console = get_console()
    if results:
        write_csv([result.line() for result in results], folder / "results.csv")
        write_markdown(results, results[0].name, folder / "results.md", command)
        console.print(f"Sweep on {data_set}")
        console.print(make_table(results, results[0].name))


def make_results(copies: Sequence[Copy], data_set: str) -> list[Result]:
    """The results of the networks; those that differ only in the seed have the same name."""
    names: dict[str, str] = {}  # by the other values: a long name is cut, and a hash in it includes the seed
    results = []
    for each in copies:
        others = {option: value for option, value in each.values.items() if option != SEED}
        key = json.dumps(others, sort_keys=True, default=str) if SEED in each.values else each.name
        if key not in names:
            short = ",".join(part for part in each.name.split(",") if not part.startswith(f"{SEED}=")) or "all"
            names[key] = each.name if short in names.values() else short
        parameters = sum(parameter.numel() for parameter in each.classifier.network.parameters())
        results.append(Result(names[key], each.seed, data_set, parameters, each.name, each.rows, each.values))
    return results


def _stack(module: LightningModule) -> StackedClassifier:
    assert isinstance(module, StackedClassifier), "a sweep trains one"
    return module
