"""Reads image files of any size and mode as uint8 images of one shape, batch by batch."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
#: Shape of CIFAR-10's images.
SHAPE = (3, 32, 32)
#: Errors that Pillow raises for files that are not images, are broken or are excessively large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FileBatch(NamedTuple):
    """The images of several files: those that could be read, and what was wrong with the others."""

    images: Tensor  # (B, C, H, W), uint8
    paths: list[str]  # B
    broken: list[tuple[str, str]]  # path and reason
    conversions: list[str]  # such as "resized", once per converted image


def find_images(named: str | Sequence[str]) -> list[str]:
    """Find the image files that `named` stands for, in order: files, folders (searched recursively) and globs.

    Raises:
        ValueError: If a named file does not exist, or if no image is found.
    """
    found: list[str] = []
    for name in [named] if isinstance(named, str) else named:
        path = Path(name)
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            found += sorted(str(file) for file in files if file.is_file())  # and no pipe, to wait for
        elif path.is_file():
            found.append(name)
        elif has_magic(name):
            found += sorted(file for file in glob(name, recursive=True) if Path(file).is_file())
        else:
            raise ValueError(f"no such image: expected an existing file or folder or a glob, got {name!r}")
    if not found:
        raise ValueError(f"no images: expected {', '.join(sorted(SUFFIXES))} files, got none in {named!r}")
    return found


def open_image(path: str) -> tuple[Image.Image, list[str]]:
    """Read an image in grey (L) or colour (RGB), with transparency over white. Also return what was converted.

    Raises:
        OSError: If the file is not an image or is broken.
    """
    conversions = []
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)  # upright
        if image.has_transparency_data:
            conversions.append("placed on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        elif image.mode not in ("RGB", "L"):
            conversions.append(f"converted from {image.mode}")
        if image.mode.startswith("I"):  # 16 bits, which PIL would clip instead of scaling
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image.convert("L" if image.mode in ("L", "1") else "RGB"), conversions


def read_image(path: str, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, list[str]]:
    """Read an image as uint8 of `shape`, (C, H, W). Also return what was converted.

    Transparent images are placed on white, every mode becomes RGB (grey for one channel), and other sizes are resized
    with antialiasing.

    Raises:
        OSError: If the file is not an image or is broken.
    """
    channels, height, width = shape
    image, conversions = open_image(path)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        conversions = conversions or [f"converted from {image.mode}"]
        image = image.convert(mode)
    if image.size != (width, height):
        conversions.append("resized")
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return pil_to_tensor(image), conversions


class ImageFiles(Dataset[FileBatch]):
    """Image files as a data set. They are read when a batch is requested.

    Args:
        paths: The files.
        shape: Shape of the images that the network expects, (C, H, W).
    """

    def __init__(self, paths: Sequence[str], shape: tuple[int, ...] = SHAPE) -> None:
        self.paths, self.shape = paths, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """Read the files at positions `index`, (B,), as a `FileBatch`; for an int, a single image (C, H, W).

        Raises:
            IndexError: If a position is out of range.
            OSError: If the single file is not an image or is broken.
        """
        if not isinstance(index, Tensor):
            return read_image(self.paths[index], self.shape)[0]
        batch = FileBatch(torch.empty(0, *self.shape, dtype=torch.uint8), [], [], [])
        images = []
        for path in (self.paths[i] for i in index.tolist()):
            try:
                image, conversions = read_image(path, self.shape)
            except UNREADABLE as error:
                reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
                batch.broken.append((path, reason))
            else:
                images.append(image)
                batch.paths.append(path)
                batch.conversions.extend(conversions)
        return batch._replace(images=torch.stack(images)) if images else batch
