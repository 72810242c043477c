"""Writing files that are whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

#: What the system says of a place that is full, beyond a quota or the largest size of a file, read-only, or broken.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def is_no_room(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error says that a place takes no more data, whoever asks."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def name_place(error: BaseException, place: Path | str) -> None:
    """Name a place in an error of a full disk, which the system raises without a name when it writes."""
    if is_no_room(error) and error.filename is None:
        error.filename = str(place)


@contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Call `name_place` with what is raised."""
    try:
        yield
    except OSError as error:
        name_place(error, place)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; the file written there then replaces `path`.

    It does so once it is on the disk. Until then, and if writing fails or the process dies, the old file stays. The
    name is in the same folder, since a file can't be moved in one go from one file system to another.

    Raises:
        OSError: If writing fails; it names the file, as the system's own, of a full disk say, does not.
    """
    # Another process may write the same file. The suffix stays, by which some libraries choose a format.
    beside = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        yield beside
        _flush(beside, os.O_RDWR)
        os.replace(beside, path)
        if os.name == "posix":  # elsewhere a folder can't be opened
            _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file as `replacing` does."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def _flush(path: Path, flags: int) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
