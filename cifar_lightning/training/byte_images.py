"""Which modules take images as bytes, and what the others get instead."""

from collections.abc import Callable
from typing import Any

from torch import nn

from cifar_lightning.data.image_files import FileBatch
from cifar_lightning.nn.standardize import Standardize, Statistics


def takes_bytes(module: nn.Module | None) -> bool:
    """Whether a module standardizes uint8 images itself; without a module, images stay as they are.

    It does if it has an attribute `standardize`, a `Standardize`, or a part, such as a trained `MLPClassifier`, that
    has statistics.
    """
    if module is None or isinstance(getattr(module, "standardize", None), Standardize):
        return True
    return any(isinstance(part, Standardize) and part.scaling is not None for part in module.modules())


def standardizer(statistics: Statistics) -> Callable[[Any], Any]:
    """A function that standardizes a batch's images, (B, 3, 32, 32), as float32; the rest of it stays as it is."""
    standardize = Standardize()
    standardize.set_statistics(statistics)

    def convert(batch: Any) -> Any:
        if isinstance(batch, FileBatch):
            return batch._replace(images=standardize(batch.images))
        images, labels = batch
        return standardize(images), labels

    return convert
