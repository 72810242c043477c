"""Loads a trained network from a file, in plain torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.export.image_network import NETWORK_OPTIONS, ImageNetwork
from cifar_lightning.export.metadata import KEY
from cifar_lightning.extras import require

#: The files of a folder in the Hub's format.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: Prefixes of the tensors in an `MLPClassifier`'s checkpoint that belong to the network.
PARTS = ("network.", "standardize.", "temperature.")


def load_network(path: str | Path) -> ImageNetwork:
    """Load a trained network, in evaluation mode and on the CPU. Neither Lightning nor the data set is needed.

    No code from the file is run. A checkpoint's checksums are verified.

    Args:
        path: A checkpoint of `fit`, a file that `cifar-lightning export --format safetensors` wrote, or a folder that
            `--format hub` or `save_pretrained` wrote. The last two need the package `safetensors`.

    Returns:
        A module that maps images (B, C, H, W), uint8, to logits (B, num_classes). Its `predict_proba` returns
        probabilities, and its `classes` are the class names.

    Raises:
        ValueError: If the file does not exist or is not one of these.

    Example:
        >>> import tempfile, torch
        >>> from cifar_lightning import ImageNetwork, compute_statistics, load_network
        >>> from cifar_lightning.export.safetensors_files import write_safetensors
        >>> images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        >>> network = ImageNetwork({"hidden_sizes": [16]})
        >>> network.standardize.set_statistics(compute_statistics(images, "feature"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_safetensors(network, Path(folder) / "net.safetensors")
        ...     loaded = load_network(f"{folder}/net.safetensors")
        >>> loaded(images).shape
        torch.Size([5, 10])
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if path.suffix == ".safetensors":
        options, state = read_safetensors(path)
        return build_network(path, options, state)
    return from_checkpoint(path, read_checkpoint(path))


def from_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> ImageNetwork:
    """The network of a checkpoint of an `MLPClassifier`, in evaluation mode.

    Raises:
        ValueError: If it belongs to something else, or has no statistics, as before training.
    """
    state = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith(PARTS)}
    hparams = checkpoint["hyper_parameters"]
    network = {name: value for name, value in hparams.items() if name in NETWORK_OPTIONS}
    shape = list(state["standardize.mean"].shape) if "standardize.mean" in state else [3, 32, 32]
    options = {"network": network, "classes": list(checkpoint.get("classes", [])), "shape": shape}
    return build_network(path, options, state)


def build_network(path: Path, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> ImageNetwork:
    """Build a network with the given options and state, in evaluation mode.

    Args:
        path: The file that both are from, for error messages.
        options: Arguments of `ImageNetwork`.
        state: Its tensors by name.

    Raises:
        ValueError: If they do not match, or there are no statistics to standardize images with.
    """
    try:
        network = ImageNetwork(**options)
        network.load_state_dict(dict(state))
    except (TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"wrong file {path}: expected the network of an MLPClassifier, but {reason}") from error
    if network.standardize.scaling is None:
        raise ValueError(
            f"wrong file {path}: expected a trained network with statistics to standardize images, got none"
        )
    return network.eval()


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of `ImageNetwork`, and its tensors, from a file that `export` wrote.

    Raises:
        ValueError: If the file does not exist or is not one of these, or the package `safetensors` is missing.
    """
    require("export", "safetensors")
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"no such file: expected a trained network, got {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            options = json.loads(metadata[KEY])["model"] if KEY in metadata else _read_config(path.parent)
            return options, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"wrong file {path}: expected one that cifar-lightning export --format safetensors or hub wrote, got "
            f"another ({error})"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    """What `ImageNetwork` takes, as a folder in the Hub's form has it."""
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"neither {KEY!r} in its metadata nor {CONFIG} beside it") from error
