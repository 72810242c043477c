"""Finds out which modules take images as bytes, and standardizes batches for the others."""

from collections.abc import Callable
from typing import Any

from torch import nn

from cifar_lightning.data.image_files import FileBatch
from cifar_lightning.nn.standardize import Standardize, Statistics


def takes_bytes(module: nn.Module | None) -> bool:
    """Whether a module standardizes uint8 images itself; True without a module, since images stay as they are.

    It does if it has a `Standardize` as its attribute `standardize`, or a submodule with statistics, such as a trained
    `MLPClassifier`.
    """
    if module is None or isinstance(getattr(module, "standardize", None), Standardize):
        return True
    return any(isinstance(part, Standardize) and part.scaling is not None for part in module.modules())


def standardizer(statistics: Statistics) -> Callable[[Any], Any]:
    """Return a function that standardizes a batch's images, (B, 3, 32, 32), to float32; the rest stays unchanged."""
    standardize = Standardize()
    standardize.set_statistics(statistics)

    def convert(batch: Any) -> Any:
        if isinstance(batch, FileBatch):
            return batch._replace(images=standardize(batch.images))
        images, labels = batch
        return standardize(images), labels

    return convert
