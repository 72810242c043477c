"""Passes classes and statistics from a data module to a classifier, and to its checkpoints."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule

from cifar_lightning.nn.standardize import Statistics
from cifar_lightning.training import checks


def adopt_data(module: Any, data: Any, trained: Sequence[str] = (), averages: Iterable[LightningModule] = ()) -> None:
    """Let an `MLPClassifier` take over a data module's classes and statistics, if it has any.

    Args:
        module: The classifier; if it has statistics already, it keeps them.
        data: The data module; None for none.
        trained: The classes that the network was trained on, if any.
        averages: Copies of the classifier that take over the statistics too.

    Raises:
        ValueError: If the data module's classes or scaling contradict the classifier's.
    """
    if (images := getattr(data, "images", None)) is not None:
        module.classes = list(images.classes)
        checks.check_classes(module.classes, module.network.output.out_features, trained)
        checks.check_shape(images.shape, module.network)
    statistics: Statistics | None = getattr(data, "statistics", None)
    if statistics is not None:
        for each in (module, *averages):
            each.standardize.set_statistics(statistics)
        checks.warn_of_raw_input(module.network, statistics)


def save_adopted(module: Any, checkpoint: dict[str, Any]) -> None:
    """Store an `MLPClassifier`'s classes and statistics in a checkpoint."""
    checkpoint["classes"] = module.classes
    # WeightAveraging put its copy of the module here, made before the data was known.
    checkpoint["state_dict"] |= module.standardize.state_dict(prefix="standardize.")
