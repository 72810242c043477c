"""Reads checkpoint files without running code from them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import torch

#: What a checkpoint contains: one `MLPClassifier`, a sweep of several, or any LightningModule.
Kind = Literal["network", "sweep", "module"]
KINDS = {
    "network": "the checkpoint of an MLPClassifier",
    "sweep": "the last.ckpt of a sweep",
    "module": "the checkpoint of a LightningModule",
}


def read_checkpoint(path: Path, kind: Kind = "network") -> dict[str, Any]:
    """Read a checkpoint, without running code from it.

    Args:
        path: The file.
        kind: The expected kind. A module need not have hyperparameters.

    Raises:
        ValueError: If the file does not exist, is damaged, is not a checkpoint, or is one of another kind.
    """
    if not path.is_file():
        raise ValueError(f"no such checkpoint: expected a file, got {str(path)!r}")
    try:
        if damage := _find_damage(path):
            raise ValueError(damage)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        received = _find_mismatch(checkpoint, kind)
    except Exception as error:  # a file from anywhere can make the unpickler raise anything
        received = _in_short(error)
    if received:
        raise ValueError(f"wrong checkpoint {path}: expected {KINDS[kind]}, got {received}")
    return dict(checkpoint)


def _find_mismatch(checkpoint: Any, kind: Kind) -> str:
    """Describe content that is not of the expected kind; "" if it is."""
    if not isinstance(checkpoint, Mapping):
        return f"a file that contains {type(checkpoint).__name__}"
    needed = ["state_dict", *["hyper_parameters"] * (kind != "module")]
    if not all(isinstance(checkpoint.get(name), Mapping) for name in needed):
        return f"one with {', '.join(map(repr, checkpoint))}"
    if kind != "module" and ("copies" in checkpoint) != (kind == "sweep"):
        return (
            "that of a single network"
            if kind == "sweep"
            else "that of a whole sweep, whose networks have their own in the folders beside it"
        )
    return ""


def _find_damage(path: Path) -> str:
    """Describe damage to a file, found by the archive's checksums; "" if there is none.

    torch itself does not check them: a flipped bit in a weight would go unnoticed.
    """
    with ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > path.stat().st_size:  # torch compresses nothing, and what is compressed may be of any size
            return f"a compressed file, of {size:,} bytes when unpacked"
        damaged = archive.testzip()
    return f"a damaged file: the checksum of {damaged} is wrong" if damaged else ""


def _in_short(error: Exception) -> str:
    """Say briefly what is wrong with a file, without torch's advice to let it run code."""
    text = str(error)
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"a file that would run {code[1]}"
    return (text or type(error).__name__).splitlines()[0]
