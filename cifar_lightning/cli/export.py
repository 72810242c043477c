"""`cifar-lightning export --ckpt_path best --format onnx`: export a trained network for other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from cifar_lightning.cli.check_set import CheckSet, find_check_set
from cifar_lightning.cli.checkpoint_options import find_checkpoint
from cifar_lightning.cli.configs import find_config
from cifar_lightning.cli.mistakes import one_message
from cifar_lightning.cli.own_parser import OwnParser
from cifar_lightning.cli.run_folder import RUNS
from cifar_lightning.export import formats
from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.export.hub_folder import write_hub_folder
from cifar_lightning.export.image_network import ImageNetwork
from cifar_lightning.export.load import from_checkpoint, load_network
from cifar_lightning.export.onnx_files import load_onnx, quantize
from cifar_lightning.extras import require
from cifar_lightning.training.messages import say


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`.

    Args:
        ckpt_path: The checkpoint: a file, or best or last together with the --config it was trained with.
        format: onnx for any ONNX runtime; torch-export for torch alone; safetensors for load_network, which needs this
            package but not Lightning; hub for a folder with a model card, ready for the Hugging Face Hub.
        out: File or folder to write. By default it is next to the checkpoint, with the same name.
        config: The config, or a list of them, that best and last refer to.
        mc_dropout: Whether to include Monte-Carlo dropout; the file then takes a seed per pass (seeds, int64) and also
            returns the standard deviation and the mutual information. For onnx and torch-export only.
        int8: Whether to write a second file with 8-bit weights, quantized dynamically. For onnx only.
        data_dir: Directory of the test images for checking the file; that of the training run by default.
    """

    ckpt_path: str
    format: Literal["onnx", "torch-export", "safetensors", "hub"]
    out: str | None = None
    config: list[str] | str | None = None
    mc_dropout: bool = False
    int8: bool = False
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.mc_dropout and self.format not in ("onnx", "torch-export"):
            raise ValueError(
                f"--mc_dropout needs --format onnx or torch-export, since the others hold no code; got --format "
                f"{self.format} (mc_predict does the same in Python with a loaded network)"
            )
        if self.int8 and (self.format != "onnx" or self.mc_dropout):
            received = "--mc_dropout" if self.mc_dropout else f"--format {self.format}"
            raise ValueError(f"--int8 needs --format onnx without --mc_dropout, got {received}")


def make_parser() -> ArgumentParser:
    """The parser of the command's options."""
    parser = OwnParser(
        command="export",
        description="Export a trained network as one file that maps uint8 images, in batches of any size, to "
        "probabilities. Standardization and temperature are included, and the metadata has the class names. The file "
        "is checked against the checkpoint on the test images.",
    )
    parser.add_class_arguments(ExportOptions)
    return parser


def main(args: Sequence[str]) -> None:
    """Export and check a network, and print the result.

    Raises:
        SystemExit: With status 2 on a user error, after one message.
    """
    options = make_parser().parse_args(list(args))
    with one_message():
        export(ExportOptions(**options.as_dict()))


def export(options: ExportOptions) -> Path:
    """Export a checkpoint's network, and return the file.

    Raises:
        ValueError: If an extra is missing, the checkpoint is not an `MLPClassifier`'s, or the file differs from it.
    """
    if options.format != "torch-export":
        require("hub" if options.format == "hub" else "export", *["safetensors"] * (options.format == "safetensors"))
    configs = [options.config] if isinstance(options.config, str) else options.config or []
    path = Path(find_checkpoint(options.ckpt_path, "export", [find_config(name) for name in configs], Path(RUNS)) or "")
    checkpoint = read_checkpoint(path)
    network = from_checkpoint(path, checkpoint)
    tested = find_check_set(checkpoint, network, options.data_dir)
    if options.format == "hub":
        out = Path(options.out or path.with_name(f"{path.stem}_hub"))
        write_hub_folder(network, out, checkpoint, tested.name, tested.images, tested.labels)
        _check(out, formats.compare(lambda x: [load_network(out).predict_proba(x)], network, tested.images), tested)
        return out
    out = Path(options.out or path.with_suffix(formats.SUFFIXES[options.format]))
    _write_checked(options, network, out, tested)
    return out


def _write_checked(options: ExportOptions, network: ImageNetwork, out: Path, tested: CheckSet) -> None:
    assert options.format != "hub", "it is a folder"
    if out.suffix != formats.SUFFIXES[options.format]:
        raise ValueError(
            f"wrong file name: expected one ending in {formats.SUFFIXES[options.format]}, got {str(out)!r}"
        )
    if not out.parent.is_dir():
        raise ValueError(f"no such folder: expected an existing folder for {out.name}, got {str(out.parent)!r}")
    formats.write(network, out, options.format, options.mc_dropout)
    run = formats.load(out, options.format)
    compared = formats.compare(run, network, tested.images, options.mc_dropout)
    if not compared.difference <= formats.TOLERANCE:
        out.unlink()
        raise ValueError(
            f"the exported file does not match the checkpoint: expected probabilities within {formats.TOLERANCE:g}, "
            f"got a difference of {compared.difference:.1e}; {out} was removed"
        )
    _check(out, compared, tested)
    if options.int8:
        small = out.with_suffix(f".int8{out.suffix}")
        quantize(out, small)
        _check(small, formats.compare(load_onnx(small), network, tested.images), tested)


def _check(out: Path, compared: formats.Comparison, tested: CheckSet) -> None:
    """Print what was written and how it compares."""
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    say(f"written: {out} ({size:,} bytes)", wrap=False)
    on = f"on {len(tested.images):,} {tested.name}"
    say(f"  largest difference from the checkpoint's probabilities: {compared.difference:.1e}, {on}", wrap=False)
    if tested.labels is not None:
        say(f"  accuracy: {accuracy(compared.probabilities, tested.labels):.2%}")


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Accuracy of probabilities (N, K) against labels (N,)."""
    return torch.eq(probabilities.argmax(1), labels).float().mean().item()
