"""Trained networks as ONNX files: written by torch's exporter, run by ONNX Runtime."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.export.image_network import ImageNetwork, Probabilities
from cifar_lightning.export.metadata import describe
from cifar_lightning.export.sampled_network import SampledNetwork
from cifar_lightning.extras import require
from cifar_lightning.files import replacing

#: Maximum size of an ONNX (protobuf) file in bytes.
MOST_BYTES = 2**31 - 1
#: Names of the inputs and outputs, without and with Monte-Carlo dropout.
INPUTS, OUTPUTS = ["images", "seeds"], ["probabilities", "std", "mutual_information"]
BATCH, SAMPLES = torch.export.Dim("batch"), torch.export.Dim("samples")


def example_inputs(network: ImageNetwork, samples: bool) -> tuple[Tensor, ...]:
    """Two images, and with `samples` three seeds, to trace a network with."""
    images = torch.zeros(2, *network.shape, dtype=torch.uint8)
    return (images, torch.arange(3)) if samples else (images,)


def dynamic_shapes(samples: bool) -> tuple[dict[int, Any], ...]:
    """Which of the inputs' dimensions may have any size."""
    return ({0: BATCH}, {0: SAMPLES}) if samples else ({0: BATCH},)


def exported_module(network: ImageNetwork, samples: bool) -> nn.Module:
    """The module that is exported: with Monte-Carlo dropout, or the deterministic one.

    Raises:
        ValueError: If there is no dropout to sample.
    """
    return (SampledNetwork(network) if samples else Probabilities(network)).eval()


def write_onnx(network: ImageNetwork, path: Path, samples: bool = False) -> None:
    """Write a network that maps `images`, (B, C, H, W), uint8, to `probabilities`, (B, K).

    The file's metadata has the classes' names and an image's shape, each as a JSON text.

    Args:
        network: The network, in evaluation mode.
        path: The file, which is replaced once the new one is whole.
        samples: Whether to write a `SampledNetwork`, which also takes `seeds`, (S,), int64, and returns `std`, (B, K),
            and `mutual_information`, (B,).

    Raises:
        ValueError: If the `export` extra is missing, or if the network is too large for the format, uses an
            unsupported operator, or has no dropout to sample.
    """
    require("export", "onnx", "onnxscript")
    if (size := sum(value.nbytes for value in network.state_dict().values())) > MOST_BYTES:
        raise ValueError(
            f"network too large for ONNX: at most {MOST_BYTES:,} bytes are possible, got {size:,}. "
            "--format safetensors has no limit"
        )
    module = exported_module(network, samples)
    inputs = example_inputs(network, samples)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the exporter, about itself
            program = torch.onnx.export(
                module,
                inputs,
                input_names=INPUTS[: len(inputs)],
                output_names=OUTPUTS if samples else OUTPUTS[:1],
                dynamic_shapes=dynamic_shapes(samples),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, of several kinds, with its log of many pages as the message
        raise ValueError(f"cannot export to ONNX: expected operators that it supports, got {_reason(error)}") from error
    assert program is not None, "torch.onnx.export returns a program with dynamo=True"
    program.model.metadata_props.update(describe(network))
    with replacing(path) as beside:
        program.save(beside)


def _reason(error: BaseException) -> str:
    """The line of the exporter's message that names what it stopped at."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def quantize(path: Path, quantized: Path) -> None:
    """Write a copy of an ONNX file with 8-bit weights and dynamic quantization of activations.

    Raises:
        ValueError: If the extra `export` is missing.
    """
    require("export", "onnx", "onnxruntime")
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_no_advice)
    try:
        with replacing(quantized) as beside:
            quantize_dynamic(path, beside, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: Any) -> bool:
    return "pre-processing" not in record.getMessage()


def load_onnx(path: Path) -> Callable[..., list[Tensor]]:
    """A function that runs a file in ONNX Runtime: tensors in the order of `INPUTS` in, those of `OUTPUTS` out.

    It runs on the CPU, on as many threads as torch.

    Raises:
        ValueError: If the extra `export` is missing.
    """
    require("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        named = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return [torch.from_numpy(output) for output in session.run(None, named)]

    return run
