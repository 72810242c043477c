"""Where a run's files go, whatever its loggers are, whether any are written, and what is said of them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console

from cifar_lightning.training.messages import say


class RunFolder(Callback):
    """Gives the run a folder of its own for its config, pictures, tables and checkpoints.

    The command line adds one to each run. Without it the files go where the trainer's first logger writes.

    Args:
        folder: The folder. Beyond one device that of the first rank counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the first rank's folder."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))


def run_folder(trainer: Trainer) -> Path:
    """The folder of the present run. All ranks must ask for it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunFolder):
            return callback.folder
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_writer(trainer: Trainer) -> bool:
    """Whether this process writes the run's files: the first rank does, except in a dry run (`fast_dev_run`)."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def data_set_name(trainer: Trainer) -> str:
    """What the trainer's data is called; a DataModule that is not ours need not say it."""
    return str(getattr(trainer.datamodule, "data_set", "unnamed data"))  # type: ignore[attr-defined]


def say_where(folder: Path, names: Sequence[str], then: str = "") -> None:
    """Say which files a command has written, and what could be done next."""
    say(f"written to {folder}:", wrap=False)
    text = textwrap.fill(", ".join(names), get_console().width, initial_indent="  ", subsequent_indent="  ")
    say(text, wrap=False)
    if then:
        say_next(then)


def say_next(what: str) -> None:
    """Say what could be done next."""
    say(f"next: {what}", wrap=False)
