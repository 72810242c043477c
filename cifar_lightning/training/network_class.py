"""Stores a network's own class in its checkpoints."""

from typing import Any

from lightning.pytorch import LightningModule

from cifar_lightning.optim.class_paths import public_path

#: The checkpoint's key for import paths of classes, by "model" and, from the command line, "data".
CHECKPOINT_KEY = "class_paths"


def save_class(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Store the import path of the module's class, unless the command line has stored it already."""
    checkpoint.setdefault(CHECKPOINT_KEY, {}).setdefault("model", public_path(type(module)))
