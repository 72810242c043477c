"""Downloads CIFAR-10's official archive, showing size and progress, and alternatives if it is slow."""

import hashlib
import http.client
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cifar_lightning.data.sources import ALTERNATIVES, DataUnavailableError

#: Seconds until a host that does not answer counts as unreachable.
REACH_SECONDS = 8.0
#: Seconds that a download may take before alternatives are suggested.
PATIENCE_SECONDS = 120.0


def download_official(directory: Path) -> Path:
    """Download the official archive into `directory`, created if missing, and return its path.

    Raises:
        DataUnavailableError: If the host is unreachable, the connection breaks, or the file can't be written.
        ValueError: If the downloaded file is not the official archive.
    """
    from torchvision.datasets import CIFAR10

    return download(CIFAR10.url, directory / CIFAR10.filename, CIFAR10.tgz_md5)


def download(
    url: str, target: Path, md5: str, reach_seconds: float = REACH_SECONDS, patience: float = PATIENCE_SECONDS
) -> Path:
    """Download `url` to `target`, which only appears once it is complete and its checksum matches.

    An interrupted download is resumed, at once or in a later call, if the host supports it. If several processes call
    this at once, one downloads, and the others wait and use its file.

    Raises:
        DataUnavailableError: If there is no answer within `reach_seconds`, the connection breaks, or `target` can't be
            written.
        ValueError: If the MD5 is not `md5`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(target):
            if not _is_whole(target, md5):
                _fetch(url, target, md5, reach_seconds, patience)
    except OSError as error:
        raise DataUnavailableError(
            f"cannot write {target}: expected a writable folder with enough space, got {error}\n{ALTERNATIVES}"
        ) from error
    return target


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Hold the lock on `target`: a file beside it that exists only while the lock is held."""
    path = target.with_name(f"{target.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f"waiting for another process that is downloading {target}", highlight=False)
        lock.acquire()
    try:
        yield
    finally:
        if sys.platform != "win32":  # Windows can't remove an open file; there the lock removes it itself
            path.unlink(missing_ok=True)  # while the lock is held: waiting processes notice and lock a new file
        lock.release()


def _is_whole(path: Path, md5: str) -> bool:
    return path.exists() and _md5(path) == md5


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _fetch(url: str, target: Path, md5: str, reach_seconds: float, patience: float) -> None:
    """Download to a file beside `target` and then rename it. If interrupted, a later attempt resumes that file."""
    part = target.with_name(target.name + ".part")
    begun, kind = part.exists(), ""
    try:
        if not _is_whole(part, md5):  # it is whole if a process was killed before renaming it
            kind = _fetch_part(url, part, reach_seconds, patience)
        if begun and _md5(part) != md5:  # the existing part belonged to another file
            part.unlink()
            kind = _fetch_part(url, part, reach_seconds, patience)
        if (received := _md5(part)) != md5:
            raise ValueError(
                f"wrong download from {url}: expected the MD5 {md5}, got {received} "
                f"({part.stat().st_size:,} bytes of {kind})"
            )
        part.replace(target)
    except _BrokenOffError as error:
        raise DataUnavailableError(
            f"the download of {url} broke off: expected the whole file, got {error}. {part} is kept, and the next "
            f"attempt continues from there\n{ALTERNATIVES}"
        ) from error
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | DataUnavailableError):
            part.unlink(missing_ok=True)
        raise


class _BrokenOffError(Exception):
    """The connection broke before the download was complete."""


def _fetch_part(url: str, part: Path, reach_seconds: float, patience: float) -> str:
    """Download to `part`, continuing after its current end, and reconnect as long as there is progress.

    Returns:
        The content type.

    Raises:
        _BrokenOffError: If a connection breaks without any progress.
        DataUnavailableError: If the host is unreachable.
    """
    while True:
        before = part.stat().st_size if part.exists() else 0
        response = _open(url, reach_seconds, before)
        if response is None:  # the part is longer than the file
            part.unlink()
            continue
        try:
            _stream(response, part, url, patience)
            return response.headers.get_content_type()
        except _BrokenOffError as error:
            if part.stat().st_size <= before:
                raise
            Console(stderr=True).print(f"the connection broke ({error}); resuming", highlight=False)


def _open(url: str, seconds: float, start: int) -> http.client.HTTPResponse | None:
    """Open `url` from byte `start` on, or give up after `seconds`; None if the file has no such byte.

    It runs in a thread because name resolution has no timeout.
    """
    answer: SimpleQueue[http.client.HTTPResponse | Exception] = SimpleQueue()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=seconds))
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts; answers that are not HTTP
            answer.put(error)

    Thread(target=ask, daemon=True).start()
    response: http.client.HTTPResponse | Exception
    try:
        response = answer.get(timeout=seconds)
    except Empty:
        response = TimeoutError(f"no answer within {seconds:g} s")
    if start and getattr(response, "code", 0) == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return None
    if isinstance(response, Exception):
        raise DataUnavailableError(
            f"cannot download CIFAR-10: expected an answer from {url}, got: {response}\n{ALTERNATIVES}"
        )
    return response


def _stream(response: http.client.HTTPResponse, part: Path, url: str, patience: float) -> None:
    """Write the response to `part`, appending if the host resumes the download, with a progress bar."""
    goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
    first = part.stat().st_size if goes_on else 0
    size = first + response.length if response.length else 0  # 0 if the host does not say
    console = Console(stderr=True)
    rest = f", resuming at {first / 1e6:,.0f} MB" if first else ""
    console.print(f"downloading {url} ({size / 1e6:,.0f} MB{rest})", highlight=False)
    start, received, warned = time.monotonic(), first, False
    columns = (
        TextColumn("CIFAR-10"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with response, part.open("ab" if goes_on else "wb") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("download", total=size or None, completed=first)
        for block in _blocks(response, size - first):
            file.write(block)
            received += len(block)
            progress.update(task, completed=received)
            elapsed = time.monotonic() - start
            left = elapsed * (size - received) / (received - first)
            if left > patience and elapsed > min(5.0, patience) and not warned:
                warned = True
                progress.console.print(
                    f"The host is slow: about {left / 60:.0f} minutes left.\n{ALTERNATIVES}", highlight=False
                )


def _blocks(response: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
    """Yield the content of `response` block by block.

    Raises:
        _BrokenOffError: If the connection breaks before `size` bytes have arrived.
    """
    received = 0
    try:
        while block := response.read(1 << 16):
            received += len(block)
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(repr(error)) from error
    if received < size:
        raise _BrokenOffError(f"{received:,} of {size:,} bytes")
