"""A run's folder: made for it alone, with its logs and its checkpoints."""

import contextlib
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


def make_run_folder(parent: Path, kind: str, keep: bool = True) -> Path:
    """A folder in `parent` that no run has had before, named by kind and time; made by the first rank, if kept."""
    name = kind + time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, tries = parent / name, 1
    while keep and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not parent.is_dir():
                raise
            tries += 1
            folder = parent / f"{name}_{tries}"
    return folder


def discard_if_never_begun(folder: Path) -> None:
    """Remove the folder of a run that failed before its config was saved, and its parents if nothing else is there."""
    if folder.is_dir() and not (folder / "config.yaml").exists():
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            with contextlib.suppress(OSError):  # it holds other runs
                parent.rmdir()


def make_loggers(folder: Path) -> list[Logger]:
    """What writes metrics.csv, hparams.yaml and TensorBoard's events into the folder itself."""
    root, name, version = folder.parent.parent, folder.parent.name, folder.name
    return [CSVLogger(root, name, version), TensorBoardLogger(root, name, version)]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of an `MLPClassifier`, without running code from it.

    Raises:
        ValueError: If the file is none, or there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint: expected a file, received {str(path)!r}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        received = f"one with {', '.join(map(repr, checkpoint))}"
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError) as error:
        checkpoint, received = {}, (str(error) or type(error).__name__).splitlines()[0]
    if not {"state_dict", "hyper_parameters"} <= set(checkpoint):
        raise ValueError(f"wrong checkpoint {path}: expected one of MLPClassifier, received {received}")
    return dict(checkpoint)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, unless writing fails: what was there is then left alone."""
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
