"""Reports a user's mistake, or a disk that is full or read-only, in one message."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar_lightning.files import is_no_room

#: Set to see the traceback of an error that is reported in one message.
DEBUG_VARIABLE = "CIFAR_LIGHTNING_DEBUG"


@contextmanager
def one_message(*others: type[Exception]) -> Iterator[None]:
    """Report a ValueError, an OSError or one of the `others` in one message, and exit.

    Raises:
        SystemExit: After the message, with status 2; with 1 if a disk is full or read-only, which is no mistake.
    """
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError, *others)
    try:
        yield
    except mistakes as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        said = _describe(error) if is_no_room(error) else str(error)
        print(f"error: {said} ({DEBUG_VARIABLE}=1 shows the traceback)", file=sys.stderr)
        raise SystemExit(1 if is_no_room(error) else 2) from None


def _describe(error: OSError) -> str:
    """What is said of a file that can't be written, with what others have noted on the error."""
    place = str(error.filename or "a file")
    if "://" not in place:  # no database's URL
        place = str(Path(place).absolute())
    said = f"can't write {place}: expected a folder with room and write access, got {error.strerror!r}"
    return "; ".join([f"{said}. Files that were whole stay as they were", *getattr(error, "__notes__", [])])
