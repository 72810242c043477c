"""Fashion MNIST from its official idx files, gzipped or not (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.data.sources import DataUnavailableError, ImageSet

CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
SIZE = 28
#: Number of images of each class, by file name prefix.
PER_CLASS = {"train": 6000, "t10k": 1000}
#: Subfolders of a data directory that may hold the files; the second is torchvision's.
PLACES = (".", "FashionMNIST/raw", "fashion-mnist")
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
NAMES = [f"{part}-{kind}-ubyte" for part in PER_CLASS for kind in ("images-idx3", "labels-idx1")]


def find_fashion_mnist(directory: Path) -> Path:
    """The folder with the four files, each with or without .gz.

    Raises:
        DataUnavailableError: If there is no such folder.
    """
    for place in PLACES:
        folder = directory / place
        if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in NAMES):
            return folder
    raise DataUnavailableError(
        f"no Fashion MNIST in {str(directory)!r}: expected {', '.join(NAMES)}, each with or without .gz, there or in "
        "FashionMNIST/raw, where torchvision.datasets.FashionMNIST(data_dir, download=True) puts them; got none"
    )


def load_fashion_mnist(directory: Path) -> ImageSet:
    """Read the files.

    Raises:
        DataUnavailableError: If they are missing.
        ValueError: If a file is damaged or is not Fashion MNIST's, such as MNIST's file of the same name.
    """
    folder = find_fashion_mnist(directory)
    return ImageSet("Fashion MNIST", CLASSES, *_read_part(folder, "train"), *_read_part(folder, "t10k"))


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    count = PER_CLASS[part] * len(CLASSES)
    images = _read_idx(folder, f"{part}-images-idx3-ubyte", [IMAGES_MAGIC, count, SIZE, SIZE])
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", [LABELS_MAGIC, count]).long()
    counts = labels.bincount(minlength=len(CLASSES)).tolist()
    if counts != [PER_CLASS[part]] * len(CLASSES):
        raise ValueError(
            f"wrong labels in {folder}: expected {PER_CLASS[part]} of each of the {len(CLASSES)} Fashion MNIST "
            f"classes, got {counts} (MNIST's files have the same names)"
        )
    return images.unsqueeze(1), labels


def _read_idx(folder: Path, name: str, header: list[int]) -> Tensor:
    """Read an idx file and check its header: the magic number and the sizes."""
    packed = not (folder / name).is_file()
    path = folder / f"{name}.gz" if packed else folder / name
    expected = b"".join(number.to_bytes(4, "big") for number in header)
    length = len(expected) + torch.Size(header[1:]).numel()
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"wrong file {path}: expected an idx file, got a broken one ({error})") from error
    if len(content) != length or not content.startswith(expected):
        received = [int.from_bytes(content[i : i + 4], "big") for i in range(0, len(expected), 4)]
        more = " or more" if len(content) > length else ""
        raise ValueError(
            f"wrong file {path}: expected an idx file of {length:,} bytes that begins with {header}, got "
            f"{len(content):,} bytes{more}, which begin with {received}"
        )
    return torch.frombuffer(bytearray(content[len(expected) :]), dtype=torch.uint8).view(header[1:])
