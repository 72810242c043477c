"""A run's folder, made for it alone, and the loggers that write into it."""

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

from cifar_lightning.cli.find_run import SAVED_CONFIG, SWEEP, is_saved_config
from cifar_lightning.files import name_place
from cifar_lightning.training.run_events import RunEvents

#: Where the runs are, unless --trainer.default_root_dir says otherwise.
RUNS = "runs"


def name_of_runs(configs: Sequence[str], checkpoint: str | None) -> str:
    """What the folder of a command's runs is called: as its configs, or as the runs that its checkpoint is from.

    Args:
        configs: The configs that the command names.
        checkpoint: The checkpoint's file; None for none.
    """
    if checkpoint is not None:
        path = Path(checkpoint).absolute()
        if path.parent.name != "checkpoints" and not configs:
            return path.stem
        run = path.parent.parent
        if run.parent.name.startswith(SWEEP):  # of one of its networks
            run = run.parent
        if not configs or run / SAVED_CONFIG in [Path(config).absolute() for config in configs]:
            return run.parent.name
    return "+".join(map(_name_of_config, configs)) or "default"


def _name_of_config(config: str) -> str:
    """As the config's file, or as the run's that has saved it."""
    path = Path(config)
    if is_saved_config(config):
        return path.absolute().parent.parent.name
    return path.stem if path.is_file() else "inline"


def make_run_folder(parent: Path, kind: str, keep: bool = True) -> Path:
    """A folder in `parent` that no run has had before, named by kind and time; made by the first rank, if kept."""
    name = kind + time.strftime("%Y-%m-%d_%H-%M-%S")
    made: Path | None = _make_new(parent, name) if keep else None
    return made or parent / name


@rank_zero_only
def _make_new(parent: Path, name: str) -> Path:
    folder, tries = parent / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise
            tries += 1
            folder = parent / f"{name}_{tries}"
        else:
            return folder


def end_in_failure(folder: Path, error: BaseException, remove: bool) -> None:
    """Name a run's folder in an error of a full disk that names no file, as the loggers' do not.

    Args:
        folder: The folder.
        error: What the run failed by.
        remove: Whether to remove the folder if the run's config was never saved, and its parents if they are empty.
    """
    name_place(error, folder)
    if remove and folder.is_dir() and not (folder / SAVED_CONFIG).exists():
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            with contextlib.suppress(OSError):  # it holds other runs
                parent.rmdir()


def make_loggers(folder: Path) -> list[Logger]:
    """What writes metrics.csv, hparams.yaml and TensorBoard's events into the folder itself."""
    root, name, version = folder.parent.parent, folder.parent.name, folder.name
    return [CSVLogger(root, name, version), RunEvents(root, name, version)]
