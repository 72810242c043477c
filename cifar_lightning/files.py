"""Atomic file writes: a file is either complete or not there at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

#: Error codes: disk full, quota exceeded, file too large, read-only, input/output error.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def is_no_room(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error means that nothing more can be written to a place, by anyone."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def name_place(error: BaseException, place: Path | str) -> None:
    """Add the name of a place to an error about a full disk: the system leaves it out when a write fails."""
    if is_no_room(error) and error.filename is None:
        error.filename = str(place)


@contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Call `name_place` on any `OSError` raised in the context."""
    try:
        yield
    except OSError as error:
        name_place(error, place)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; the file written there then replaces `path` atomically.

    The replacement happens once the data is on disk. Until then, and if writing fails or the process dies, the old file
    stays. The temporary file is in the same folder, since moves between file systems are not atomic.

    Raises:
        OSError: If writing fails. It names the file, which the system's own error, of a full disk say, does not.
    """
    # Another process may write the same file, hence the id. The suffix stays: some libraries choose the format by it.
    beside = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        yield beside
        _flush(beside, os.O_RDWR)
        os.replace(beside, path)
        if os.name == "posix":  # folders can't be opened elsewhere
            _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, with `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def _flush(path: Path, flags: int) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
