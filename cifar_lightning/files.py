"""Writing files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
