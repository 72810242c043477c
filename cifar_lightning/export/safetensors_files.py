"""Trained networks as safetensors: tensors and metadata, without any code."""

from pathlib import Path

from cifar_lightning.export.image_network import ImageNetwork
from cifar_lightning.export.metadata import describe
from cifar_lightning.extras import require
from cifar_lightning.files import write_whole


def write_safetensors(network: ImageNetwork, path: Path) -> None:
    """Write a network, for `load_network` to read.

    Raises:
        ValueError: If the package `safetensors` is missing.
    """
    require("export", "safetensors")
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_whole(path, save(state, describe(network) | {"format": "pt"}))  # its own writer hides the system's errors
