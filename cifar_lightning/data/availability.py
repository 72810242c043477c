"""Makes the images of a source available and loads them."""

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
    """Download CIFAR-10 if needed and allowed; print a banner if synthetic images replace it.

    Raises:
        DataUnavailableError: If CIFAR-10 is required but is not on disk and cannot be downloaded, or if the files of
            another source are missing.
    """
    if source == "synthetic":
        return
    directory = find_data_dir(data_dir)
    if source == "folder":
        load_folder(directory)  # fills its cache for the processes on this machine
        return
    if source == "fashion_mnist":
        find_fashion_mnist(directory)
        return
    if find_official(directory) is not None or find_parquet(directory) is not None:
        return
    try:
        if not download:
            raise DataUnavailableError(
                f"no CIFAR-10 in {str(directory)!r}: expected the official files or --data.download true, "
                f"got {_listing(directory)}\n{ALTERNATIVES}"
            )
        download_official(directory)
    except DataUnavailableError as error:
        if source == "cifar10":
            raise
        rule = "=" * 100
        print(
            f"{rule}\n{error}\n\nUSING SYNTHETIC IMAGES instead: the results below say nothing about CIFAR-10.\n{rule}",
            file=sys.stderr,
        )


def load_images(source: Source, data_dir: str | None, synthetic_size: int) -> ImageSet:
    """Load the images of a source. Call `make_available` first.

    Raises:
        DataUnavailableError: If the images are missing.
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
            f"no CIFAR-10 in {str(directory)!r}: call prepare_data(), which downloads it, before setup(); "
            f"got {_listing(directory)}"
        )
    return make_synthetic(synthetic_size)


def describe_images(source: Source, data_dir: str | None) -> tuple[tuple[int, int, int], tuple[str, ...] | None]:
    """The shape of an image, (C, H, W), and the names of the classes, found without reading all images.

    The names are None for CIFAR-10 and the synthetic set.

    Raises:
        ValueError: If the source is a folder that does not contain images by class.
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
    return f"only {', '.join(names[:3])}{more}" if names else "an empty directory"
