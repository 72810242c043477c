"""Checks of the classes, labels, images, statistics and callbacks that an `MLPClassifier` is used with."""

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

#: Lightning callbacks that an `MLPClassifier` can't be trained with, each with the reason.
UNSUITABLE_CALLBACKS: dict[type[Callback], str] = {
    BackboneFinetuning: "it needs a `backbone`, and there is none. Use FreezePretrained (--trainer.callbacks+="
    "FreezePretrained) to freeze and unfreeze layers",
    BatchSizeFinder: "it optimizes for speed, and changes the results and the length of the schedule. Set the size "
    "with --data.batch_size",
    LearningRateFinder: "it finds the learning rate too late for a schedule, whose peak stays the same. Use LRFinder "
    "(--trainer.callbacks+=LRFinder), which rebuilds the schedule",
}


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Check that an `MLPClassifier` can be trained with these callbacks.

    Raises:
        ValueError: If one of them can't work or does harm.
    """
    for callback in callbacks:
        for unsuitable, reason in UNSUITABLE_CALLBACKS.items():
            if isinstance(callback, unsuitable):
                raise ValueError(f"{type(callback).__name__} can't be used with this network: {reason}")


def check_classes(classes: Sequence[str], num_classes: int, trained: Sequence[str] = ()) -> None:
    """Check that the data's classes match the network's number of classes, and the classes it was trained on.

    Raises:
        ValueError: If they do not.
    """
    if len(classes) != num_classes:
        raise ValueError(
            f"num_classes must be {len(classes)}, the number of classes in the data ({', '.join(classes)}), "
            f"got {num_classes}"
        )
    if list(trained) not in ([], list(classes)):
        raise ValueError(f"wrong classes: expected {list(trained)}, as in training, got {list(classes)}")


def check_shape(shape: Sequence[int], network: nn.Module) -> None:
    """Check that a `DeepMLP` takes images of this shape, (C, H, W). Other networks are not checked.

    Raises:
        ValueError: If it does not.
    """
    if isinstance(network, DeepMLP) and math.prod(shape) != network.in_features:
        raise ValueError(
            f"in_features must be {math.prod(shape)}, the number of values in an image of shape "
            f"{tuple(shape)}, got {network.in_features}"
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that labels (B,) are indices of classes, from 0 to num_classes - 1.

    Raises:
        ValueError: If one is not, or if they have a dtype that torch takes no labels in.
    """
    if labels.dtype not in (torch.int64, torch.uint8):
        raise ValueError(
            "wrong labels: expected the index of each image's class, as int64 or uint8, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = map(int, torch.stack(labels.aminmax()).tolist())  # one wait for a GPU
    if not 0 <= low <= high < num_classes:
        raise ValueError(f"wrong labels: expected 0 to {num_classes - 1}, got {low} to {high}")


def check_images(images: Tensor, standardize: Standardize) -> None:
    """Check that images are floats, or that there are statistics to standardize bytes with.

    Raises:
        ValueError: If they are bytes without statistics.
    """
    if images.dtype == torch.uint8 and standardize.scaling is None:
        raise ValueError(
            "no statistics to standardize these images with: expected a data module with `statistics`, such as "
            "CIFAR10DataModule, a trained checkpoint, or module.standardize.set_statistics(compute_statistics(images, "
            "'feature')) first; got uint8 images without any. (Float images are used unchanged.)"
        )


def check_batch(images: Tensor, labels: Tensor, num_classes: int, standardize: Standardize) -> None:
    """Call `check_labels` and `check_images`, and check that each image has one label.

    Raises:
        ValueError: If labels or images are wrong.
    """
    check_labels(labels, num_classes)
    if images.ndim > 3 and labels.shape != images.shape[:-3]:
        raise ValueError(
            f"wrong labels: expected one for each image, of shape {tuple(images.shape[:-3])}, got {tuple(labels.shape)}"
        )
    check_images(images, standardize)


def check_batch_norm(network: nn.Module, batch_size: int) -> None:
    """Check that a network with batch normalization is not trained on batches of one image.

    Raises:
        ValueError: If it is: an image minus its own mean is 0.
    """
    normalizes = any(isinstance(module, nn.BatchNorm1d) and module.training for module in network.modules())
    if normalizes and batch_size == 1:
        raise ValueError(
            "batch normalization can't be trained on single images: expected at least two images per batch, "
            "or --model.normalization layer or none; got a batch of one"
        )


def check_validated(schedule: Schedule, is_validated: bool) -> None:
    """Check that there are validations for a schedule that follows a validation metric.

    Raises:
        ValueError: If there are none.
    """
    if schedule.monitor is not None and not is_validated:
        raise ValueError(
            f"the schedule {type(schedule).__name__} follows {schedule.monitor}: expected a run with validations, "
            "got one without"
        )


def warn_of_raw_input(network: DeepMLP, statistics: Statistics) -> None:
    """Warn if a SELU network, which needs standardized inputs to normalize itself, gets other inputs."""
    if network.activation == "selu" and statistics.scaling in ("raw", "unit"):
        gap = network.self_normalization_gaps(standardized_input=False)[-1]
        warnings.warn(f"this SELU network does not normalize itself: {gap}", stacklevel=2)


def check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint can be resumed.

    Raises:
        ValueError: If it holds only weights.
    """
    if "loops" not in checkpoint:
        raise ValueError(
            "no run to resume: expected the checkpoint of a training run, got one with weights only, as a sweep "
            "writes for each network. Start from these weights with --pretrained.checkpoint"
        )
