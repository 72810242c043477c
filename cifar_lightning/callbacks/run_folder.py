"""The folder of a run's files, whatever its loggers are, and messages about what was written."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console

from cifar_lightning.training.messages import say


class RunFolder(Callback):
    """Gives the run its own folder for its config, plots, tables and checkpoints.

    The command line adds one to each run. Without it, files go to the folder of the trainer's first logger.

    Args:
        folder: The folder. With several devices, the first rank's is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the first rank's folder."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))


def run_folder(trainer: Trainer) -> Path:
    """The folder of the current run. All ranks must call it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunFolder):
            return callback.folder
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_writer(trainer: Trainer) -> bool:
    """Whether this process writes the run's files: the first rank does, except in a dry run (`fast_dev_run`)."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def data_set_name(trainer: Trainer) -> str:
    """The name of the trainer's data set; a data module that is not ours may have none."""
    return str(getattr(trainer.datamodule, "data_set", "unnamed data"))  # type: ignore[attr-defined]


def say_where(folder: Path, names: Sequence[str], then: str = "") -> None:
    """Print which files a command has written, and a suggestion for the next step."""
    say(f"written to {folder}:", wrap=False)
    text = textwrap.fill(", ".join(names), get_console().width, initial_indent="  ", subsequent_indent="  ")
    say(text, wrap=False)
    if then:
        say_next(then)


def say_next(what: str) -> None:
    """Print a suggestion for the next step."""
    say(f"next: {what}", wrap=False)
