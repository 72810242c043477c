"""CIFAR-10 in the Hugging Face Hub's format (uoft-cs/cifar10): two parquet files of PNGs."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cifar_lightning.data.image_cache import Decoded, cached
from cifar_lightning.data.image_files import UNREADABLE
from cifar_lightning.data.sources import ImageSet
from cifar_lightning.extras import require

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Number of images of each class, by file name.
PER_CLASS = {"train": 5000, "test": 1000}
#: Subfolders of a data directory that may hold the files.
PLACES = (".", "plain_text")
COLUMNS = ("img", "label")


def find_parquet(directory: Path) -> tuple[Path, ...] | None:
    """The paths of the training and test files; None if they are missing."""
    for place in PLACES:
        files = tuple(directory / place / f"{part}-00000-of-00001.parquet" for part in PER_CLASS)
        if all(file.is_file() for file in files):
            return files
    return None


def load_parquet(files: tuple[Path, ...]) -> ImageSet:
    """Read the files, or the cache beside them. Images are in the Hub's order, which is not the archive's.

    Raises:
        ValueError: If the `parquet` extra is missing, or if the columns, counts or images are not CIFAR-10's.
    """
    require("parquet")

    def decode() -> Decoded:
        train, test = (_read(file, count) for file, count in zip(files, PER_CLASS.values(), strict=True))
        return Decoded(*train, *test)

    return ImageSet("CIFAR-10", CLASSES, *cached(files[0].parent, files, decode))


def _read(path: Path, per_class: int) -> tuple[Tensor, Tensor]:
    count = per_class * len(CLASSES)
    images, labels = torch.empty(count, 3, 32, 32, dtype=torch.uint8), torch.empty(count, dtype=torch.long)
    number = -1
    for number, row in enumerate(_rows(path, count)):
        if number < count:
            images[number], labels[number] = _decode(path, number, row)
    counts = labels[: number + 1].bincount(minlength=len(CLASSES)).tolist()
    if number + 1 != count or counts != [per_class] * len(CLASSES):
        raise ValueError(
            f"wrong file {path}: expected {per_class} images of each of {len(CLASSES)} classes, got "
            f"{number + 1} rows with class counts {counts}"
        )
    return images, labels


def _rows(path: Path, count: int) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows != count:  # before the first is read: a small file may say that it has billions
            raise ValueError(f"{file.metadata.num_rows:,} rows, in the place of {count:,}")
        if not set(COLUMNS) <= set(file.schema_arrow.names):
            raise ValueError(f"the columns {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(1000, columns=list(COLUMNS)):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"wrong file {path}: expected a parquet file with the columns {' and '.join(COLUMNS)}, got {error}"
        ) from error


def _decode(path: Path, number: int, row: Mapping[str, Any]) -> tuple[Tensor, int]:
    try:
        with Image.open(io.BytesIO(row["img"]["bytes"]), formats=["PNG"]) as image:
            pixels, label = pil_to_tensor(image.convert("RGB")) if image.size == (32, 32) else None, row["label"]
            received = f"{image.size}"
    except (*UNREADABLE, TypeError, KeyError) as error:
        pixels, label, received = None, None, str(error)
    if pixels is None or label not in range(len(CLASSES)):
        raise ValueError(
            f"wrong row {number} in {path}: expected a PNG of 32 x 32 pixels and a label from 0 to {len(CLASSES) - 1}, "
            f"got {received} and {label!r}"
        )
    return pixels, label
