"""Loads networks that were trained before: teachers, members of an ensemble, and networks whose layers are reused."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.optim.class_paths import public_path
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.network_class import CHECKPOINT_KEY


def load_trained(path: str, own: type[MLPClassifier]) -> tuple[MLPClassifier, dict[str, Any]]:
    """Load a trained network, in evaluation mode and on the CPU, as the class that its checkpoint names.

    Args:
        path: The checkpoint.
        own: The class of the network that it is loaded for.

    Returns:
        The network, and the content of the checkpoint.

    Raises:
        ValueError: If the file is not a checkpoint, if the class is not in an imported module, or if it can't be built
            from the checkpoint.
    """
    checkpoint = read_checkpoint(Path(path))
    cls = _find_class(path, checkpoint, own)
    try:
        network = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (TypeError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"wrong checkpoint {path}: expected that of a {public_path(cls)}, but {reason}") from error
    return network.eval(), checkpoint


def check_alike(path: str, trained: MLPClassifier, own: MLPClassifier) -> None:
    """Check that a trained network classifies the same images into the same classes, in the same order.

    Args:
        path: Its checkpoint.
        trained: The trained network.
        own: The network that it is used with. If either doesn't know the names of its classes, their number counts.

    Raises:
        ValueError: If it does not.
    """
    names = (own.classes, trained.classes) if own.classes and trained.classes else ([], [])
    ours, theirs = own.network, trained.network
    for what, expected, received in (
        ("classes", *names),
        ("number of classes", ours.output.out_features, theirs.output.out_features),
        ("number of inputs", ours.in_features, theirs.in_features),
    ):
        if expected != received:
            raise ValueError(f"{path} must have the network's {what}: expected {expected}, got {received}")


def _find_class(path: str, checkpoint: Mapping[str, Any], own: type[MLPClassifier]) -> type[MLPClassifier]:
    """The class of a checkpoint's network. No module is imported here: loading a checkpoint must not run code."""
    paths = checkpoint.get(CHECKPOINT_KEY)
    stored = paths.get("model") if isinstance(paths, Mapping) else None
    if stored is None and own is MLPClassifier:  # version 0.1.0 stored no class in Python
        return own
    if stored is None:
        raise ValueError(
            f"the class of the network in {path} is unknown: expected its import path in the checkpoint's "
            f"['{CHECKPOINT_KEY}']['model'], which version 0.1.0 stored only from the command line, got none"
        )
    module, _, name = str(stored).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if inspect.isclass(found) and issubclass(found, MLPClassifier):
        return found
    if stored in (public_path(own), f"__main__.{own.__name__}"):  # defined in a function, or in a program
        return own
    raise ValueError(
        f"can't load {path}, since that must not import a module: expected a network of {public_path(own)}, or of "
        f"another MLPClassifier that is imported already, got one of {stored}"
    )
