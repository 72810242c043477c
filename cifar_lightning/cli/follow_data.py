"""Derives a network's number of inputs and classes from its data."""

import math
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from cifar_lightning.data.availability import describe_images
from cifar_lightning.training.datamodule import CIFAR10DataModule

#: The options of a network that follow from its data.
FOLLOWED = ("in_features", "num_classes")


def follow_data(config: Namespace, given: Mapping[str, Mapping[str, Any]], data: type) -> None:
    """Set `model.in_features` and `model.num_classes` to match the data, unless they are given.

    Args:
        config: The options of an `MLPClassifier` run without a checkpoint; changed in place.
        given: The options that the user has set.
        data: The data module's class; nothing is known of the images of other classes than ours.

    Raises:
        ValueError: If the data is a folder that does not contain images by class.
    """
    if not issubclass(data, CIFAR10DataModule):
        return
    shape, classes = describe_images(config.data.source, config.data.data_dir)
    chosen = config.data.classes or classes
    for name, value in zip(FOLLOWED, (math.prod(shape), len(chosen or ())), strict=True):
        if value and name in config.model and name not in given.get("model", {}):  # a subclass may have fewer options
            config.model[name] = value
