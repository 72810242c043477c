"""Finds the test images of a checkpoint's data set, on which an exported file is checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from cifar_lightning.data.availability import load_images
from cifar_lightning.data.sources import DataUnavailableError, select_classes
from cifar_lightning.export.image_network import ImageNetwork

#: Number of random images to use if the test images are unavailable.
RANDOM_IMAGES = 1000


class CheckSet(NamedTuple):
    """Images to check a file on.

    Args:
        name: Description for messages.
        images: (N, C, H, W), uint8.
        labels: (N,), int64; None for images without a class.
    """

    name: str
    images: Tensor
    labels: Tensor | None


def find_check_set(checkpoint: Mapping[str, Any], network: ImageNetwork, data_dir: str | None) -> CheckSet:
    """Load the test images of the data that a checkpoint's network was trained on; nothing is downloaded.

    Args:
        checkpoint: The checkpoint.
        network: Its network.
        data_dir: Directory of the data; that of the training run by default.

    Returns:
        The test images, or random images with a name that says why.

    Raises:
        ValueError: If the given directory does not contain the data.
    """
    data = checkpoint.get("datamodule_hyper_parameters", {})
    place = data_dir or data.get("data_dir")
    try:
        images = load_images(data["source"], place, data["synthetic_size"])
        if data.get("classes") is not None:
            images, _ = select_classes(images, data["classes"])
    except (DataUnavailableError, KeyError) as error:
        if data_dir is not None:
            raise ValueError(str(error)) from error
        reason = "another data module's" if isinstance(error, KeyError) else f"not in {Path(place or 'data')}"
        generator = Generator().manual_seed(0)
        made_up = torch.randint(256, (RANDOM_IMAGES, *network.shape), dtype=torch.uint8, generator=generator)
        return CheckSet(f"random images, since the test images are {reason} (set --data_dir)", made_up, None)
    return CheckSet(f"test images of {images.name}", images.test_images, images.test_labels)
