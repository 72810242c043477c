"""Which images are in use: CIFAR-10 where it is or can be had, and other ones where they are asked for."""

import sys
from pathlib import Path

from cifar_lightning.data.cifar10_parquet import find_parquet, load_parquet
from cifar_lightning.data.download import download_official
from cifar_lightning.data.fashion_mnist import CLASSES as FASHION_CLASSES
from cifar_lightning.data.fashion_mnist import SIZE as FASHION_SIZE
from cifar_lightning.data.fashion_mnist import find_fashion_mnist, load_fashion_mnist
from cifar_lightning.data.image_folder import describe_folder, load_folder
from cifar_lightning.data.sources import (
    ALTERNATIVES,
    DataUnavailableError,
    ImageSet,
    Source,
    find_data_dir,
    find_official,
    load_official,
    make_synthetic,
)


def make_available(source: Source, data_dir: str | None, download: bool) -> None:
    """Download CIFAR-10 if it is needed, missing and allowed to be; print a banner if synthetic images replace it.

    Raises:
        DataUnavailableError: If only CIFAR-10 will do, and it is neither on the disk nor in reach; or if another
            source is not on the disk.
    """
    if source == "synthetic":
        return
    directory = find_data_dir(data_dir)
    if source == "folder":
        load_folder(directory)  # into its cache, for the processes of this machine
        return
    if source == "fashion_mnist":
        find_fashion_mnist(directory)
        return
    if find_official(directory) is not None or find_parquet(directory) is not None:
        return
    try:
        if not download:
            raise DataUnavailableError(
                f"no CIFAR-10 in {str(directory)!r}: expected the official files there or --data.download true; "
                f"got {_listing(directory)}\n{ALTERNATIVES}"
            )
        download_official(directory)
    except DataUnavailableError as error:
        if source == "cifar10":
            raise
        rule = "=" * 100
        print(
            f"{rule}\n{error}\n\nUSING SYNTHETIC IMAGES instead: the figures below say nothing about CIFAR-10.\n{rule}",
            file=sys.stderr,
        )


def load_images(source: Source, data_dir: str | None, synthetic_size: int) -> ImageSet:
    """Load what `make_available` has made available.

    Raises:
        DataUnavailableError: If it was not called, and CIFAR-10 is not there.
    """
    if source == "synthetic":
        return make_synthetic(synthetic_size)
    directory = find_data_dir(data_dir)
    if source == "folder":
        return load_folder(directory)
    if source == "fashion_mnist":
        return load_fashion_mnist(directory)
    if (place := find_official(directory)) is not None:
        return load_official(place)
    if (files := find_parquet(directory)) is not None:
        return load_parquet(files)
    if source == "cifar10":
        raise DataUnavailableError(
            f"no CIFAR-10 in {str(directory)!r}: expected prepare_data() before setup(), which would download it; "
            f"got {_listing(directory)}"
        )
    return make_synthetic(synthetic_size)


def describe_images(source: Source, data_dir: str | None) -> tuple[tuple[int, int, int], tuple[str, ...] | None]:
    """The shape of an image, (C, H, W), and the names of the classes, as far as they are known without all images.

    They are None for sets of ten classes of their own, with images as CIFAR-10's.

    Raises:
        ValueError: If the source is a folder without images by class.
    """
    match source:
        case "folder":
            return describe_folder(find_data_dir(data_dir))
        case "fashion_mnist":
            return (1, FASHION_SIZE, FASHION_SIZE), FASHION_CLASSES
    return (3, 32, 32), None


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory"
    names = sorted(path.name for path in directory.iterdir())
    more = ", ..." if len(names) > 3 else ""
    return f"nothing but {', '.join(names[:3])}{more}" if names else "an empty directory"
