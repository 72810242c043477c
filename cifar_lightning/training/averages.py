"""Averaged weights of the networks of a stack: each network's part of what `WeightAveraging` averages."""

from collections.abc import Iterable

from lightning.pytorch import LightningModule

from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.lightning_internals import averaged_modules


def averages_of(stack: LightningModule, index: int) -> list[MLPClassifier]:
    """The averages of one network's weights: one for each callback `WeightAveraging`.

    Args:
        stack: A `StackedClassifier` with a trainer.
        index: The network's index.
    """
    return [averaged.classifiers[index] for averaged in averaged_modules(stack.trainer)]


def take_averages(stack: LightningModule, stopped: Iterable[int]) -> None:
    """Give networks that have stopped their averaged weights, as their own trainings would at the end.

    Later updates leave these averages unchanged, since they average equal weights.

    Args:
        stack: A `StackedClassifier` with a trainer.
        stopped: The networks' indices.
    """
    for index in stopped:
        for averaged in averages_of(stack, index):
            stack.classifiers[index].load_state_dict(averaged.state_dict())  # type: ignore[index, union-attr]
