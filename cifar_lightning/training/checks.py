"""What does not fit an `MLPClassifier`: other classes, labels out of range, images without statistics, callbacks."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, BatchSizeFinder, LearningRateFinder
from torch import Tensor, nn

from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.nn.standardize import Standardize, Statistics
from cifar_lightning.optim.schedule import Schedule

#: Callbacks of Lightning that an `MLPClassifier` can't be trained with, each with the reason.
UNSUITABLE_CALLBACKS: dict[type[Callback], str] = {
    BackboneFinetuning: "it looks for a `backbone`, and there is none; FreezePretrained (--trainer.callbacks+="
    "FreezePretrained) freezes layers and lets them go",
    BatchSizeFinder: "the size it finds is for speed, and changes the result and the length that a schedule was made "
    "for; name one as --data.batch_size",
    LearningRateFinder: "the rate it finds comes too late for a schedule, whose peak stays what it was; LRFinder "
    "(--trainer.callbacks+=LRFinder) builds the schedule anew",
}


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Check that an `MLPClassifier` can be trained with these callbacks.

    Raises:
        ValueError: If one of them can't act, or does harm.
    """
    for callback in callbacks:
        for unsuitable, reason in UNSUITABLE_CALLBACKS.items():
            if isinstance(callback, unsuitable):
                raise ValueError(
                    f"{unsuitable.__name__} is not for this network: {reason}. Expected no such callback, got "
                    f"{type(callback).__name__}"
                )


def check_classes(classes: Sequence[str], num_classes: int, trained: Sequence[str] = ()) -> None:
    """Check that data of these classes suits a network of so many, or one that was trained on some.

    Raises:
        ValueError: If it does not.
    """
    if len(classes) != num_classes:
        raise ValueError(
            f"wrong num_classes: expected {len(classes)}, the number of the data's classes ({', '.join(classes)}); "
            f"got {num_classes}"
        )
    if list(trained) not in ([], list(classes)):
        raise ValueError(f"other classes: expected {list(trained)}, as in the training; got {list(classes)}")


def check_shape(shape: Sequence[int], network: nn.Module) -> None:
    """Check that a `DeepMLP` takes images of this shape, (C, H, W); a subclass may have another network.

    Raises:
        ValueError: If it does not.
    """
    if isinstance(network, DeepMLP) and math.prod(shape) != network.in_features:
        raise ValueError(
            f"wrong in_features: expected {math.prod(shape)}, the number of values in an image of shape "
            f"{tuple(shape)}; got {network.in_features}"
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that labels (B,) are from 0 to num_classes - 1.

    Raises:
        ValueError: If one is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        raise ValueError(f"wrong labels: expected 0 to {num_classes - 1}, got {low} to {high}")


def check_images(images: Tensor, standardize: Standardize) -> None:
    """Check that images are floats, or that there are statistics to standardize bytes with.

    Raises:
        ValueError: If they are bytes without statistics.
    """
    if images.dtype == torch.uint8 and standardize.scaling is None:
        raise ValueError(
            "nothing says how to standardize these images: expected a data module with `statistics`, such as "
            "CIFAR10DataModule, a trained checkpoint, or module.standardize.set_statistics(compute_statistics(images, "
            "'feature')) first; got uint8 images without any. (Float images are taken as they are.)"
        )


def check_batch(images: Tensor, labels: Tensor, num_classes: int, standardize: Standardize) -> None:
    """Call `check_labels` and `check_images`."""
    check_labels(labels, num_classes)
    check_images(images, standardize)


def check_batch_norm(network: nn.Module, batch_size: int) -> None:
    """Check that a network which normalizes by batches is not trained on batches of one.

    Raises:
        ValueError: If it is: an image minus its own mean is 0.
    """
    normalizes = any(isinstance(module, nn.BatchNorm1d) and module.training for module in network.modules())
    if normalizes and batch_size == 1:
        raise ValueError(
            "batch normalization can't be trained on single images: expected at least two images a batch, "
            "or --model.normalization layer or none; got a batch of one"
        )


def check_validated(schedule: Schedule, is_validated: bool) -> None:
    """Check that a schedule that goes by a metric has validations to go by.

    Raises:
        ValueError: If it has none.
    """
    if schedule.monitor is not None and not is_validated:
        raise ValueError(
            f"the schedule {type(schedule).__name__} would never act: expected validations, whose {schedule.monitor} "
            "it is conditioned on; got a training without"
        )


def warn_of_raw_input(network: DeepMLP, statistics: Statistics) -> None:
    """Warn if a SELU network, which needs standardized inputs to normalize itself, gets others."""
    if network.activation == "selu" and statistics.scaling in ("raw", "unit"):
        gap = network.self_normalization_gaps(standardized_input=False)[-1]
        warnings.warn(f"this SELU network does not normalize itself: {gap}", stacklevel=2)


def check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint says where its training stood.

    Raises:
        ValueError: If it holds weights alone.
    """
    if "loops" not in checkpoint:
        raise ValueError(
            "no training to resume: expected the checkpoint of a training, got one of weights alone, as a sweep "
            "writes it; start from these by --pretrained.checkpoint"
        )
