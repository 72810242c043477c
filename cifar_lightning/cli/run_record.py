"""Records what is needed to repeat a run besides its config: command, versions, source, data and device."""

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from cifar_lightning import __version__
from cifar_lightning.callbacks.run_folder import data_set_name
from cifar_lightning.training.datamodule import CIFAR10DataModule

#: The record's name in a run's folder.
RECORD = "environment.json"
LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")
#: Seconds that git may take to look at a checkout.
PATIENCE = 10.0


def make_record(trainer: Trainer, arguments: Sequence[str]) -> dict[str, Any]:
    """Make the record of a run that is starting.

    Args:
        trainer: The trainer, with its data set up.
        arguments: The arguments of `cifar-lightning`.
    """
    return {
        "command": shlex.join(["cifar-lightning", *arguments]),
        "folder": str(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"cifar_lightning": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in LIBRARIES},
        "git": {"folder": git_state(Path.cwd()), "package": git_state(Path(__file__).parent)},
        "data": _data(trainer),
        "device": _device(trainer),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout around `folder`, and whether it has uncommitted changes; None if there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a huge checkout
        return None
    return None if done.returncode else done.stdout.strip()


def _data(trainer: Trainer) -> dict[str, Any] | None:
    """The data set, as far as it is known; None if only image files are predicted, which the command names."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, CIFAR10DataModule) and data.fingerprint is None:
        return None
    return {"name": data_set_name(trainer), "fingerprint": getattr(data, "fingerprint", None)}


def _device(trainer: Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "type": device.type,
        "name": name,
        "devices": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }
