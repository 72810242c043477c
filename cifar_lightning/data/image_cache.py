"""Decoded images kept on the disk, so that only the first reading of many files takes long."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_lightning.files import replacing

#: The file, in the directory of the images.
CACHE = ".cifar_lightning_images.pt"


class Decoded(NamedTuple):
    """The images of a data set, decoded."""

    train_images: Tensor  # (N, C, H, W), uint8
    train_labels: Tensor  # (N,), int64
    test_images: Tensor  # (M, C, H, W), uint8
    test_labels: Tensor  # (M,), int64


def cached(directory: Path, files: Sequence[Path], decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` returns, from the cache if no file has changed since; it is kept there where that is possible.

    Args:
        directory: Where the cache is.
        files: The files that are decoded, each known by its name, size and time.
        decode: What decodes them.
    """
    path, key = directory / CACHE, _key(directory, files)
    if (found := _read(path, key)) is not None:
        return found
    decoded = decode()
    try:
        with replacing(path) as beside:
            torch.save({"key": key, "images": list(decoded)}, beside)
    except (OSError, RuntimeError):  # (torch's own writer reports a full disk by the latter)
        pass  # a directory that can't be written to, or a full disk: the next reading takes as long as this one
    return decoded


def _key(directory: Path, files: Sequence[Path]) -> str:
    stats = [(str(file.relative_to(directory)), file.stat()) for file in files]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(path: Path, key: str) -> Decoded | None:
    """The content of a cache of these files; None if there is none, it is of others, or it is damaged."""
    try:
        content = torch.load(path, weights_only=True)
        decoded = Decoded(*content["images"])
        is_whole = [getattr(part, "dtype", None) for part in decoded] == 2 * [torch.uint8, torch.int64]
    except Exception:  # a file from anywhere can make the unpickler raise anything
        return None
    return decoded if is_whole and content.get("key") == key else None
