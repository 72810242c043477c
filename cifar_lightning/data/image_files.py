"""Image files of any size and mode as uint8 images of one shape, streamed."""

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
#: What Pillow raises for a file that is no image, or a broken or excessive one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FileBatch(NamedTuple):
    """The images of some files: those that could be read, and what was wrong with the others."""

    images: Tensor  # (B, C, H, W), uint8
    paths: list[str]  # B
    broken: list[tuple[str, str]]  # path and reason
    conversions: list[str]  # "resized" and the like, once for each image to which it was done


def find_images(named: str | Sequence[str]) -> list[str]:
    """The image files that `named` means, in order: files, folders (searched through) and globs.

    Raises:
        ValueError: If there is no such file, or none at all.
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
            raise ValueError(f"no such image: expected a file, a folder or a glob, received {name!r}")
    if not found:
        raise ValueError(f"no images: expected {', '.join(sorted(SUFFIXES))} files, received none in {named!r}")
    return found


def open_image(path: str) -> tuple[Image.Image, list[str]]:
    """Read an image in grey (L) or in colour (RGB), and say what was converted: transparency is laid on white.

    Raises:
        OSError: If the file is no image, or a broken one.
    """
    conversions = []
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)  # as its camera was held
        if image.has_transparency_data:
            conversions.append("laid on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        elif image.mode not in ("RGB", "L"):
            conversions.append(f"converted from {image.mode}")
        if image.mode.startswith("I"):  # 16 bits, which PIL would clip and not scale
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image.convert("L" if image.mode in ("L", "1") else "RGB"), conversions


def read_image(path: str, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, list[str]]:
    """Read an image as `shape`, (C, H, W), uint8, and say what was converted.

    Transparency is laid on white, every mode becomes RGB, or grey for one channel, and another size is resized with
    antialiasing.

    Raises:
        OSError: If the file is no image, or a broken one.
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
    """Image files, read when a batch of them is asked for.

    Args:
        paths: The files.
        shape: Shape of an image, (C, H, W), as the network takes it.
    """

    def __init__(self, paths: Sequence[str], shape: tuple[int, ...] = SHAPE) -> None:
        self.paths, self.shape = paths, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """The files at the positions `index`, (B,), as a `FileBatch`; for an int, the image (C, H, W) of one file.

        Raises:
            IndexError: If there is no such file.
            OSError: If the one file is no image, or a broken one.
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
