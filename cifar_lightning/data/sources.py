"""Data sets in memory: CIFAR-10 from its official files, the synthetic set, and code that all sources share."""

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cifar_lightning.data.synthetic import synthetic_images
from cifar_lightning.errors import refuse_more, unknown_name

#: cifar10_or_synthetic uses the synthetic set, with a banner, if CIFAR-10 is not on disk and cannot be downloaded.
Source = Literal["cifar10", "synthetic", "cifar10_or_synthetic", "folder", "fashion_mnist"]

#: More than any official file has: of a file that is larger, no more is read, and its MD5 is another.
MOST_BYTES = 200_000_000
#: The most synthetic images, of 3 GB.
MOST_IMAGES = 1_000_000
ENVIRONMENT_VARIABLE = "CIFAR10_DIR"
DEFAULT_DIR = "data"
ALTERNATIVES = f"""\
To provide CIFAR-10, put one of these into a directory and name it with --data.data_dir or {ENVIRONMENT_VARIABLE}:
  cifar-10-python.tar.gz   the official archive, https://www.cs.toronto.edu/~kriz/cifar.html
  cifar-10-batches-py/     the same, unpacked (the form that torchvision and Keras use)
  plain_text/              the two parquet files from the Hugging Face Hub's uoft-cs/cifar10
Or train on synthetic images: --data.source synthetic"""


class DataUnavailableError(ValueError):
    """The images are not on disk and cannot be downloaded."""


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory.

    Args:
        name: Name of the data set in logs, plots and tables.
        classes: Names of the classes.
        train_images: (N, C, H, W), uint8.
        train_labels: (N,), int64, an index into `classes`.
        test_images: (M, C, H, W), uint8.
        test_labels: (M,), int64.

    Raises:
        ValueError: If a shape, a dtype or a label is wrong.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, (C, H, W)."""
        return tuple(self.train_images.shape[1:])

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        counts = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        return f"ImageSet({self.name}: {counts} of {size}, {len(self.classes)} classes)"

    def __post_init__(self) -> None:
        for images, labels in (
            (self.train_images, self.train_labels),
            (self.test_images, self.test_labels),
        ):
            is_image = len(self.shape) == 3 and self.shape[0] in (1, 3)
            if images.dtype != torch.uint8 or images.shape != (len(labels), *self.shape) or not is_image:
                raise ValueError(
                    f"wrong images in {self.name}: expected uint8 of shape ({len(labels)}, C, H, W) with C 1 or 3, "
                    f"got {images.dtype} of shape {tuple(images.shape)}"
                )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                raise ValueError(
                    f"wrong labels in {self.name}: expected 0 to {len(self.classes) - 1}, "
                    f"got {int(labels.min())} to {int(labels.max())}"
                )


def find_data_dir(data_dir: str | None) -> Path:
    """The data directory: `data_dir`, else the environment variable CIFAR10_DIR, else "data".

    Raises:
        DataUnavailableError: If the argument or the variable names a directory that does not exist.
    """
    named = data_dir or os.environ.get(ENVIRONMENT_VARIABLE)
    if named and not Path(named).is_dir():
        option = "data_dir" if data_dir else ENVIRONMENT_VARIABLE
        found = "a file" if Path(named).is_file() else "no such directory"
        raise DataUnavailableError(
            f"{option} must be a directory with CIFAR-10's files, got {named!r} ({found})\n{ALTERNATIVES}"
        )
    return Path(named or DEFAULT_DIR)


def find_official(directory: Path) -> Path | None:
    """Find the unpacked folder or the archive in `directory` (or `directory` itself); None if there is neither.

    An incomplete folder, which another process may be unpacking, counts only if there is no archive.
    """
    from torchvision.datasets import CIFAR10

    folder: Path = directory / CIFAR10.base_folder
    archive: Path = directory / CIFAR10.filename
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    there: dict[Path, int] = {place: sum((place / name).exists() for name in names) for place in (folder, directory)}
    for place, count in there.items():
        if count == len(names):
            return place
    if archive.exists():
        return archive
    return next((place for place, count in there.items() if count), None)


def load_official(place: Path) -> ImageSet:
    """Read CIFAR-10 from the official folder or archive. Files are only unpickled if their MD5 is the official one.

    Raises:
        ValueError: If a file is missing, truncated or altered.
    """
    from torchvision.datasets import CIFAR10

    read = _folder_reader(place) if place.is_dir() else _read_archive(place).__getitem__
    train = _join_batches(read(name) for name, _ in CIFAR10.train_list)
    test = _join_batches(read(name) for name, _ in CIFAR10.test_list)
    classes = pickle.loads(read(CIFAR10.meta["filename"]), encoding="bytes")[CIFAR10.meta["key"].encode()]
    return ImageSet("CIFAR-10", tuple(name.decode() for name in classes), *train, *test)


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    """Return a function that reads one file at a time, to limit memory."""
    from torchvision.datasets import CIFAR10

    checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    return lambda name: _read_checked(folder / name, checksums[name])


def _read_archive(path: Path) -> dict[str, bytes]:
    from torchvision.datasets import CIFAR10

    content = io.BytesIO(_read_checked(path, CIFAR10.tgz_md5))
    with tarfile.open(fileobj=content) as archive:
        opened = [(Path(member.name).name, archive.extractfile(member)) for member in archive]
        return {name: file.read() for name, file in opened if file is not None}


def _read_checked(path: Path, md5: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"cannot read {path}: expected a readable file, got a folder, a device or a pipe")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
    except FileNotFoundError:
        raise DataUnavailableError(
            f"CIFAR-10 is incomplete: expected the file {path.name} in {path.parent}, got none\n{ALTERNATIVES}"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: expected a readable file, got {error}") from error
    received = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if received != md5:
        raise ValueError(
            f"altered or truncated file {path}: expected the official MD5 {md5}, "
            f"got {received} ({path.stat().st_size:,} bytes). Delete it and download it again"
        )
    return content


def _join_batches(files: Iterable[bytes]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and labels (N,) of pickled batches."""
    content = bytearray()  # grows in place; joining tensors at the end would hold all images twice
    labels: list[int] = []
    for file in files:
        batch = pickle.loads(file, encoding="bytes")  # Python 2 strings, which need no decoding
        content += batch[b"data"].data  # (N, 3072), channels first
        labels += batch[b"labels"]
    return torch.frombuffer(content, dtype=torch.uint8).view(-1, 3, 32, 32), torch.tensor(labels)


def make_synthetic(train_size: int) -> ImageSet:
    """The synthetic set, with a fifth as many test images as training images.

    Raises:
        ValueError: If there are more than `MOST_IMAGES`.
    """
    refuse_more(MOST_IMAGES, train_size, "synthetic images")
    classes, train, test = synthetic_images(train_size, max(1, train_size // 5))
    return ImageSet("synthetic", classes, *train, *test)


def select_classes(images: ImageSet, chosen: Sequence[int | str]) -> tuple[ImageSet, Tensor]:
    """Select the images of some classes, relabelled 0, 1, ... in the given order.

    Args:
        images: All images.
        chosen: The classes, by name or index.

    Returns:
        The selected images, and the new index of each original training image, (N,), int64; -1 if it was left out.

    Raises:
        ValueError: If a class is unknown or occurs twice, or if fewer than two are chosen.
    """
    known = images.classes
    for choice in chosen:
        if choice not in (*known, *range(len(known))):
            raise unknown_name("class", choice, known)
    names = tuple(known[choice] if isinstance(choice, int) else choice for choice in chosen)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"wrong classes: expected at least two, each only once; got {list(chosen)}")
    labels = torch.tensor([names.index(name) if name in names else -1 for name in known])
    train_labels, test_labels = labels[images.train_labels], labels[images.test_labels]
    train, test = (train_labels >= 0).nonzero().squeeze(1), (test_labels >= 0).nonzero().squeeze(1)
    places = torch.full_like(train_labels, -1)
    places[train] = torch.arange(len(train))
    left_out = [name for name in known if name not in names]
    data_set = f"{images.name} ({', '.join(names)})"
    if 0 < len(left_out) < len(names) and names == tuple(name for name in known if name in names):
        data_set = f"{images.name} without {', '.join(left_out)}"  # short enough for a title, and still unambiguous
    # (index_select copies whole images; indexing would copy single bytes.)
    selected = ImageSet(
        data_set,
        names,
        images.train_images.index_select(0, train),
        train_labels[train],
        images.test_images.index_select(0, test),
        test_labels[test],
    )
    return selected, places
