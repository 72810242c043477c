"""`cifar-lightning export --ckpt_path best --format onnx`: a trained network as a file for other programs."""

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
    """What to export.

    Args:
        ckpt_path: The checkpoint: a file, or best or last with the --config it was trained with.
        format: onnx for any runtime of ONNX; torch-export for torch alone; safetensors for load_network, which needs
            this package but no Lightning; hub for a folder with a model card, ready for the Hugging Face Hub.
        out: The file or the folder to write; by default beside the checkpoint, under its name.
        config: The config, or a list of them, that best and last were trained with.
        mc_dropout: Whether to write Monte-Carlo dropout: the file then takes a seed for each pass (seeds, int64), and
            also gives the standard deviation and the mutual information. For onnx and torch-export.
        int8: Whether to write a second file with weights of 8 bits, quantized dynamically. For onnx.
        data_dir: Directory of the test images that the file is checked on; by default as in the training.
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
                f"--mc_dropout is code, which only onnx and torch-export hold: expected one of these, got "
                f"--format {self.format} (with its network, mc_predict does the same in Python)"
            )
        if self.int8 and (self.format != "onnx" or self.mc_dropout):
            received = "--mc_dropout" if self.mc_dropout else f"--format {self.format}"
            raise ValueError(f"--int8 is for ONNX Runtime: expected --format onnx alone, got {received}")


def make_parser() -> ArgumentParser:
    """The parser of the command's options."""
    parser = OwnParser(
        command="export",
        description="Write a trained network as one file that maps uint8 images, in batches of any size, to "
        "probabilities: standardization and temperature are inside, the classes' names in its metadata. The file is "
        "checked against the checkpoint on the test images.",
    )
    parser.add_class_arguments(ExportOptions)
    return parser


def main(args: Sequence[str]) -> None:
    """Export, check, and say what was written.

    Raises:
        SystemExit: With status 2 for a user's mistake, after one message.
    """
    options = make_parser().parse_args(list(args))
    with one_message():
        export(ExportOptions(**options.as_dict()))


def export(options: ExportOptions) -> Path:
    """Export a checkpoint's network, and return the file.

    Raises:
        ValueError: If an extra is missing, the checkpoint is of something else, or the file differs from it.
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
            f"wrong file name: expected one that ends with {formats.SUFFIXES[options.format]}, got {str(out)!r}"
        )
    if not out.parent.is_dir():
        raise ValueError(f"no such folder: expected one to write {out.name} into, got {str(out.parent)!r}")
    formats.write(network, out, options.format, options.mc_dropout)
    run = formats.load(out, options.format)
    compared = formats.compare(run, network, tested.images, options.mc_dropout)
    if not compared.difference <= formats.TOLERANCE:
        out.unlink()
        raise ValueError(
            f"the file does not compute what the checkpoint does: expected probabilities within {formats.TOLERANCE:g}, "
            f"got a difference of {compared.difference:.1e}; {out} was removed"
        )
    _check(out, compared, tested)
    if options.int8:
        small = out.with_suffix(f".int8{out.suffix}")
        quantize(out, small)
        _check(small, formats.compare(load_onnx(small), network, tested.images), tested)


def _check(out: Path, compared: formats.Comparison, tested: CheckSet) -> None:
    """Say what was written and how it compares."""
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    say(f"written: {out} ({size:,} bytes)", wrap=False)
    on = f"on {len(tested.images):,} {tested.name}"
    say(f"  largest difference from the checkpoint's probabilities: {compared.difference:.1e}, {on}", wrap=False)
    if tested.labels is not None:
        say(f"  accuracy: {accuracy(compared.probabilities, tested.labels):.2%}")


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of images (N,) whose most probable class, of (N, K), is their label's."""
    return torch.eq(probabilities.argmax(1), labels).float().mean().item()
