"""Trained networks as programs of `torch.export`, which torch runs without this package."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.export.image_network import ImageNetwork
from cifar_lightning.export.metadata import KEY, describe
from cifar_lightning.export.onnx_files import dynamic_shapes, example_inputs, exported_module
from cifar_lightning.files import write_whole

#: The name under which the metadata is in the file, one JSON text.
EXTRA_FILE = f"{KEY}.json"


def write_program(network: ImageNetwork, path: Path, samples: bool = False) -> None:
    """Write a network with the inputs and outputs of `write_onnx`, which `torch.export.load(path).module()` runs.

    The metadata is the extra file `cifar_lightning.json`, with `classes` and `shape`.

    Args:
        network: The network, in evaluation mode.
        path: The file, which is replaced once the new one is whole.
        samples: Whether to write a `SampledNetwork`, which also takes seeds.

    Raises:
        ValueError: If the network can't be traced, or has no dropout to sample.
    """
    module = exported_module(network, samples)
    try:
        program = torch.export.export(
            module, example_inputs(network, samples), dynamic_shapes=dynamic_shapes(samples), strict=False
        )
    except (RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot trace the network: expected a forward pass of torch operators, got {reason}"
        ) from error
    metadata = {name: json.loads(text) for name, text in describe(network).items()}
    content = io.BytesIO()  # as for checkpoints, since torch's own writer hides the system's errors
    torch.export.save(program, content, extra_files={EXTRA_FILE: json.dumps(metadata)})
    write_whole(path, content.getvalue())


def load_program(path: Path) -> Callable[..., list[Tensor]]:
    """A function that runs a file: tensors in, a list of tensors out."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(*inputs: Tensor) -> list[Tensor]:
        outputs = module(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run
