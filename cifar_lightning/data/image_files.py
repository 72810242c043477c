"""Image files of any size and mode as uint8 images of 32 x 32, streamed."""

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
SIZE = 32


class FileBatch(NamedTuple):
    """The images of some files: those that could be read, and what was wrong with the others."""

    images: Tensor  # (B, 3, 32, 32), uint8
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
            found += sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(name)
        elif has_magic(name):
            found += sorted(file for file in glob(name, recursive=True) if Path(file).is_file())
        else:
            raise ValueError(f"no such image: expected a file, a folder or a glob, received {name!r}")
    if not found:
        raise ValueError(f"no images: expected {', '.join(sorted(SUFFIXES))} files, received none in {named!r}")
    return found


def read_image(path: str) -> tuple[Tensor, list[str]]:
    """Read an image as (3, 32, 32), uint8, and say what was converted.

    Transparency is laid on white, every mode becomes RGB, and another size is resized with antialiasing.

    Raises:
        OSError: If the file is no image, or a broken one.
    """
    conversions = []
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)  # as its camera was held
        if image.has_transparency_data:
            conversions.append("laid on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        elif image.mode != "RGB":
            conversions.append(f"converted from {image.mode}")
        if image.mode.startswith("I"):  # 16 bits, which PIL would clip and not scale
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        image = image.convert("RGB")
        if image.size != (SIZE, SIZE):
            conversions.append("resized")
            image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        return pil_to_tensor(image), conversions


class ImageFiles(Dataset[FileBatch]):
    """Image files, read when a batch of them is asked for.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """The files at the positions `index`, (B,), as a `FileBatch`; for an int, the image (3, 32, 32) of one file.

        Raises:
            IndexError: If there is no such file.
            OSError: If the one file is no image, or a broken one.
        """
        if not isinstance(index, Tensor):
            return read_image(self.paths[index])[0]
        batch = FileBatch(torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8), [], [], [])
        images = []
        for path in (self.paths[i] for i in index.tolist()):
            try:
                image, conversions = read_image(path)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
                batch.broken.append((path, reason))
            else:
                images.append(image)
                batch.paths.append(path)
                batch.conversions.extend(conversions)
        return batch._replace(images=torch.stack(images)) if images else batch
