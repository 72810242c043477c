"""Caches decoded images on disk, so only the first read of many files is slow."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_lightning.files import replacing

#: The cache file, in the directory of the images.
CACHE = ".cifar_lightning_images.pt"


class Decoded(NamedTuple):
    """The images of a data set, decoded."""

    train_images: Tensor  # (N, C, H, W), uint8
    train_labels: Tensor  # (N,), int64
    test_images: Tensor  # (M, C, H, W), uint8
    test_labels: Tensor  # (M,), int64


def cached(directory: Path, files: Sequence[Path], decode: Callable[[], Decoded]) -> Decoded:
    """Return the result of `decode`, from the cache if no file has changed since; write the cache if possible.

    Args:
        directory: The directory of the cache.
        files: The files that are decoded. A change of name, size or modification time invalidates the cache.
        decode: Decodes the files.
    """
    path, key = directory / CACHE, _key(directory, files)
    if (found := _read(path, key)) is not None:
        return found
    decoded = decode()
    try:
        with replacing(path) as beside:
            torch.save({"key": key, "images": list(decoded)}, beside)
    except (OSError, RuntimeError):  # (torch's own writer reports a full disk by the latter)
        pass  # a read-only directory or a full disk: the next read takes as long as this one
    return decoded


def _key(directory: Path, files: Sequence[Path]) -> str:
    stats = [(str(file.relative_to(directory)), file.stat()) for file in files]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(path: Path, key: str) -> Decoded | None:
    """Read the cache; None if there is none, it belongs to other files, or it is damaged."""
    try:
        content = torch.load(path, weights_only=True)
        decoded = Decoded(*content["images"])
        is_whole = [getattr(part, "dtype", None) for part in decoded] == 2 * [torch.uint8, torch.int64]
    except Exception:  # a file from anywhere can make the unpickler raise anything
        return None
    return decoded if is_whole and content.get("key") == key else None
