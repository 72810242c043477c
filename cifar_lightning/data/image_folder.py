"""Your own images: one folder per class, with any names and any number of classes."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cifar_lightning.data.image_cache import Decoded, cached
from cifar_lightning.data.image_files import SUFFIXES, UNREADABLE, open_image
from cifar_lightning.data.sources import DataUnavailableError, ImageSet

LAYOUT = f"one folder per class with {', '.join(sorted(SUFFIXES))} files, either directly in it or in train/ and test/"
#: Without train/ and test/, every sixth image of a class is used for testing, the share that CIFAR-10 has.
EACH_TEST = 6


class Listing(NamedTuple):
    """The files of a folder of images.

    Args:
        classes: Names of the classes, in alphabetical order.
        train: The training images, each with the index of its class.
        test: The test images.
    """

    classes: tuple[str, ...]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]


def list_folder(directory: Path) -> Listing:
    """Find the classes and their images.

    Raises:
        DataUnavailableError: If there are none.
        ValueError: If there is only one class, a class has no images, the test set has a class that the training set
            lacks, or a path is not a file.
    """
    if (directory / "train").is_dir() and (directory / "test").is_dir():
        by_class, tested = _by_class(directory / "train"), _by_class(directory / "test")
        for name in tested.keys() - by_class.keys():
            raise ValueError(
                f"wrong folder {directory / 'test' / name}: expected one of the training classes, "
                f"{', '.join(by_class)}; got {name!r}"
            )
    else:
        by_class, tested = _by_class(directory), {}
    classes = tuple(by_class)
    if len(classes) < 2:
        raise ValueError(f"only one class in {directory}: expected at least two ({LAYOUT}), got only {classes[0]!r}")
    labelled = [[(path, label) for path in by_class[name]] for label, name in enumerate(classes)]
    if not tested:
        train = [each for files in labelled for i, each in enumerate(files) if i % EACH_TEST != EACH_TEST - 1]
        return Listing(classes, train, [each for files in labelled for each in files[EACH_TEST - 1 :: EACH_TEST]])
    test = [(path, classes.index(name)) for name, files in tested.items() for path in files]
    return Listing(classes, [each for files in labelled for each in files], test)


def _by_class(directory: Path) -> dict[str, list[Path]]:
    found = {}
    for folder in sorted(path for path in directory.glob("[!.]*") if path.is_dir()):
        found[folder.name] = sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES)
    _check_files(chain.from_iterable(found.values()))
    if not any(found.values()):
        inside = ", ".join(sorted(path.name for path in directory.iterdir())[:3]) or "an empty directory"
        raise DataUnavailableError(f"no images in {directory}: expected {LAYOUT}; got {inside}")
    for name, files in found.items():
        if not files:
            raise ValueError(f"no images in {directory / name}: expected {LAYOUT}; got none for this class")
    return found


def _check_files(paths: Iterable[Path]) -> None:
    """Check that there is a file behind each path: reading from a pipe would never end."""
    for path in paths:
        if not path.is_file():
            raise ValueError(f"wrong file {path}: expected an image, got a folder, a pipe or a broken link")


def describe_folder(directory: Path) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """The shape (C, H, W) of the first image, and the names of the classes.

    Raises:
        ValueError: As in `list_folder`, or if the first file is not an image.
    """
    listing = list_folder(directory)
    image = _open(listing.train[0][0])
    return (len(image.getbands()), image.height, image.width), listing.classes


def load_folder(directory: Path) -> ImageSet:
    """Read the images, or the cache in the folder if they have not changed since.

    All images must have the same size. If the first is grey, all must be grey, and they are (1, H, W). If it is in
    colour, they are (3, H, W), and grey images are converted.

    Raises:
        ValueError: As in `list_folder`, or if a file is not an image, has another size, or is in colour among grey
            ones.
    """
    listing = list_folder(directory)
    files = [path for path, _ in (*listing.train, *listing.test)]
    shape, _ = describe_folder(directory)

    def decode() -> Decoded:
        return Decoded(*_read(listing.train, shape, files[0]), *_read(listing.test, shape, files[0]))

    return ImageSet(f"folder {directory.resolve().name}", listing.classes, *cached(directory, files, decode))


def _read(labelled: list[tuple[Path, int]], shape: tuple[int, int, int], first: Path) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(labelled), *shape, dtype=torch.uint8)
    for i, image in enumerate(_like_the_first([path for path, _ in labelled], shape, first)):
        images[i] = pil_to_tensor(image)
    return images, torch.tensor([label for _, label in labelled], dtype=torch.long)


def _like_the_first(paths: list[Path], shape: tuple[int, int, int], first: Path) -> Iterator[Image.Image]:
    channels, height, width = shape
    for path in paths:
        image = _open(path)
        if image.size != (width, height):
            raise ValueError(
                f"images of different sizes: expected {width} x {height} pixels, as in {first}, got "
                f"{image.width} x {image.height} in {path}"
            )
        if channels == 1 and image.mode != "L":
            raise ValueError(f"a colour image among grey ones: expected grey, as in {first}, got colour in {path}")
        yield image.convert("L" if channels == 1 else "RGB")


def _open(path: Path) -> Image.Image:
    """An image, grey (L) or in colour (RGB)."""
    try:
        return open_image(str(path))[0]
    except UNREADABLE as error:
        raise ValueError(f"cannot read {path}: expected an image, got another or a broken file ({error})") from error
