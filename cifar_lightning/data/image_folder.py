"""Your own images: a folder for each class, of any names and number."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cifar_lightning.data.image_cache import Decoded, cached
from cifar_lightning.data.image_files import SUFFIXES, UNREADABLE, open_image
from cifar_lightning.data.sources import DataUnavailableError, ImageSet

LAYOUT = (
    f"a folder for each class with {', '.join(sorted(SUFFIXES))} files in it, either at its top or in train/ and test/"
)
#: Of a folder without train/ and test/, each sixth image of a class is for testing, as in CIFAR-10.
EACH_TEST = 6


class Listing(NamedTuple):
    """The files of a folder of images.

    Args:
        classes: Names of the classes, in alphabetical order.
        train: The training images, each with its class's index.
        test: The test images.
    """

    classes: tuple[str, ...]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]


def list_folder(directory: Path) -> Listing:
    """Find the classes and their images.

    Raises:
        DataUnavailableError: If there are none.
        ValueError: If there is one class only, one without images, a class to test that is not trained on, or a link
            out of the folder.
    """
    if (directory / "train").is_dir() and (directory / "test").is_dir():
        by_class, tested = _by_class(directory / "train"), _by_class(directory / "test")
        for name in tested.keys() - by_class.keys():
            raise ValueError(
                f"wrong folder {directory / 'test' / name}: expected one of the training's classes, "
                f"{', '.join(by_class)}; received {name!r}"
            )
    else:
        by_class, tested = _by_class(directory), {}
    classes = tuple(by_class)
    if len(classes) < 2:
        raise ValueError(
            f"one class only in {directory}: expected at least two, as {LAYOUT}; received {classes[0]!r} alone"
        )
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
    _check_files(directory, [path for files in found.values() for path in files])
    if not any(found.values()):
        inside = ", ".join(sorted(path.name for path in directory.iterdir())[:3]) or "an empty directory"
        raise DataUnavailableError(f"no images in {directory}: expected {LAYOUT}; received {inside}")
    for name, files in found.items():
        if not files:
            raise ValueError(f"no images in {directory / name}: expected {LAYOUT}; received none of this class")
    return found


def _check_files(directory: Path, paths: Sequence[Path]) -> None:
    """Check that all are files of the folder: a link may lead anywhere, and a pipe would be waited for without end."""
    root = os.path.realpath(directory)
    for path in [*dict.fromkeys(path.parent for path in paths), *paths]:
        if path.is_symlink() and not (target := Path(os.path.realpath(path))).is_relative_to(root):
            raise ValueError(
                f"a link out of {directory}: expected images inside of it, received {path}, which leads to {target}. "
                "Copy what it leads to"
            )
    for path in paths:
        if not path.is_file():
            raise ValueError(f"wrong file {path}: expected an image, received a folder, a pipe, or a broken link")


def describe_folder(directory: Path) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """The shape of an image (C, H, W), which is the first one's, and the names of the classes.

    Raises:
        ValueError: As `list_folder`, or if the first file is no image.
    """
    listing = list_folder(directory)
    image = _open(listing.train[0][0])
    return (len(image.getbands()), image.height, image.width), listing.classes


def load_folder(directory: Path) -> ImageSet:
    """Read the images, from a cache in the folder if they were read before and have not changed.

    All have one size. Where the first is grey they are (1, H, W), and all must be; where it is in colour they are
    (3, H, W), and grey ones become so.

    Raises:
        ValueError: As `list_folder`, or for a file that is no image, of another size, or in colour among grey ones.
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
                f"images of several sizes: expected {width} x {height} pixels, as {first}; received "
                f"{image.width} x {image.height} in {path}"
            )
        if channels == 1 and image.mode != "L":
            raise ValueError(f"a colour image among grey ones: expected grey, as {first}; received colour in {path}")
        yield image.convert("L" if channels == 1 else "RGB")


def _open(path: Path) -> Image.Image:
    """An image, grey (L) or in colour (RGB)."""
    try:
        return open_image(str(path))[0]
    except UNREADABLE as error:
        raise ValueError(f"wrong file {path}: expected an image, received another or a broken one ({error})") from error
