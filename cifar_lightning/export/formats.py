"""Writes and loads exported files, and compares them with their network on images."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from cifar_lightning.export.image_network import ImageNetwork
from cifar_lightning.export.load import load_network
from cifar_lightning.export.onnx_files import exported_module, load_onnx, write_onnx
from cifar_lightning.export.safetensors_files import write_safetensors
from cifar_lightning.export.torch_export_files import load_program, write_program

FileFormat = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[str, str] = dict(zip(get_args(FileFormat), (".onnx", ".pt2", ".safetensors"), strict=True))
#: The largest difference between probabilities that rounding explains.
TOLERANCE = 1e-5
#: Number of images compared at a time, and of Monte-Carlo dropout passes for each.
BATCH, PASSES = 1000, 10


class Comparison(NamedTuple):
    """The comparison of a file's probabilities with those of its network.

    Args:
        difference: The largest absolute difference.
        probabilities: (N, K), the file's probabilities.
    """

    difference: float
    probabilities: Tensor


def write(network: ImageNetwork, path: Path, file_format: FileFormat, samples: bool = False) -> None:
    """Write a network's file.

    Args:
        network: The network, in evaluation mode.
        path: The file.
        file_format: The format.
        samples: Whether to include Monte-Carlo dropout.

    Raises:
        ValueError: If the network can't be exported this way.
    """
    match file_format:
        case "onnx":
            write_onnx(network, path, samples)
        case "torch-export":
            write_program(network, path, samples)
        case "safetensors":
            if samples:
                raise ValueError(
                    "safetensors files hold no code and so no Monte-Carlo dropout: expected --format onnx or "
                    "torch-export, or mc_predict with the loaded network; got --format safetensors"
                )
            write_safetensors(network, path)


def load(path: Path, file_format: FileFormat) -> Callable[..., list[Tensor]]:
    """Load a file as a function of tensors that returns a list of tensors, the first of which are probabilities."""
    match file_format:
        case "onnx":
            return load_onnx(path)
        case "torch-export":
            return load_program(path)
        case "safetensors":
            network = load_network(path)
            return lambda images: [network.predict_proba(images)]


@torch.no_grad()
def compare(
    run: Callable[..., list[Tensor]], network: ImageNetwork, images: Tensor, samples: bool = False
) -> Comparison:
    """Compare a loaded file with its network on images (N, C, H, W), uint8; Monte-Carlo dropout uses `PASSES` seeds."""
    module, seeds = exported_module(network, samples), (torch.arange(PASSES),) * samples
    differences, parts = [torch.zeros(())], []
    for batch in images.split(BATCH):
        expected = module(batch, *seeds)
        probabilities = run(batch, *seeds)[0]
        first = expected[0] if samples else expected
        differences.append((probabilities - first).abs().max())
        parts.append(probabilities)
    # (Of tensors, since Python's max passes over NaN.)
    return Comparison(torch.stack(differences).max().item(), torch.cat(parts))
