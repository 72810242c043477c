"""Which images are in use: CIFAR-10 where it is or can be had, and synthetic ones where they are asked for."""

import sys
from pathlib import Path

from cifar_lightning.data.download import download_official
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
        DataUnavailableError: If only CIFAR-10 will do, and it is neither on the disk nor in reach.
    """
    if source == "synthetic":
        return
    directory = find_data_dir(data_dir)
    if find_official(directory) is not None:
        return
    try:
        if not download:
            raise DataUnavailableError(
                f"no CIFAR-10 in {str(directory)!r}: expected the official files there or --data.download true; "
                f"received {_listing(directory)}\n{ALTERNATIVES}"
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
    place = find_official(directory)
    if place is not None:
        return load_official(place)
    if source == "cifar10":
        raise DataUnavailableError(
            f"no CIFAR-10 in {str(directory)!r}: expected prepare_data() before setup(), which would download it; "
            f"received {_listing(directory)}"
        )
    return make_synthetic(synthetic_size)


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory"
    names = sorted(path.name for path in directory.iterdir())
    more = ", ..." if len(names) > 3 else ""
    return f"nothing but {', '.join(names[:3])}{more}" if names else "an empty directory"
