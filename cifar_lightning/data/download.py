"""Downloading CIFAR-10's official archive, with its size, its progress and a way out when it is slow."""

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

#: Seconds until a host that does not answer counts as out of reach.
REACH_SECONDS = 8.0
#: Seconds that a download may take before the alternatives are named.
PATIENCE_SECONDS = 120.0


def download_official(directory: Path) -> Path:
    """Download the official archive into `directory`, which is made if missing, and return its path.

    Raises:
        DataUnavailableError: If the host is out of reach, the connection breaks, or the file can't be written.
        ValueError: If what came is not the official archive.
    """
    from torchvision.datasets import CIFAR10

    return download(CIFAR10.url, directory / CIFAR10.filename, CIFAR10.tgz_md5)


def download(
    url: str, target: Path, md5: str, reach_seconds: float = REACH_SECONDS, patience: float = PATIENCE_SECONDS
) -> Path:
    """Download `url` to `target`, which appears only once it is whole and its checksum right.

    A download that breaks off goes on where it was, at once or in a later call, if the host can do that. Several
    processes may download at once: one does, and the others wait and take its file.

    Raises:
        DataUnavailableError: If nothing answers within `reach_seconds`, the connection breaks, or `target` can't be
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
            f"can't write {target}: expected a folder with write access and room for the file, got {error}\n"
            f"{ALTERNATIVES}"
        ) from error
    return target


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a file beside it, which is there only meanwhile."""
    path = target.with_name(f"{target.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f"waiting for another process that downloads {target}", highlight=False)
        lock.acquire()
    try:
        yield
    finally:
        if sys.platform != "win32":  # where an open file can't be removed; there the lock does it itself
            path.unlink(missing_ok=True)  # while it is held: whoever waits for it notices, and locks a new one
        lock.release()


def _is_whole(path: Path, md5: str) -> bool:
    return path.exists() and _md5(path) == md5


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _fetch(url: str, target: Path, md5: str, reach_seconds: float, patience: float) -> None:
    """Download to a file beside `target`, which a later try goes on with if this one breaks off, and then rename it."""
    part = target.with_name(target.name + ".part")
    begun, kind = part.exists(), ""
    try:
        if not _is_whole(part, md5):  # as of a process that was killed before it could rename it
            kind = _fetch_part(url, part, reach_seconds, patience)
        if begun and _md5(part) != md5:  # what was there is not the beginning of it
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
            f"the download of {url} broke: expected the whole file, got {error}. {part} is kept: the next try "
            f"goes on from there\n{ALTERNATIVES}"
        ) from error
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | DataUnavailableError):
            part.unlink(missing_ok=True)
        raise


class _BrokenOffError(Exception):
    """A connection broke before all had come."""


def _fetch_part(url: str, part: Path, reach_seconds: float, patience: float) -> str:
    """Download to `part`, after what is there, again and again while more comes; return the content type.

    Raises:
        _BrokenOffError: If a connection breaks before anything new has come by it.
        DataUnavailableError: If the host is out of reach.
    """
    while True:
        before = part.stat().st_size if part.exists() else 0
        response = _open(url, reach_seconds, before)
        if response is None:  # no file is so long
            part.unlink()
            continue
        try:
            _stream(response, part, url, patience)
            return response.headers.get_content_type()
        except _BrokenOffError as error:
            if part.stat().st_size <= before:
                raise
            Console(stderr=True).print(f"the connection broke ({error}): it goes on from there", highlight=False)


def _open(url: str, seconds: float, start: int) -> http.client.HTTPResponse | None:
    """Open `url` from byte `start` on, or give up after `seconds`; None if the host has nothing from there on.

    It is done in a thread, for a name look-up knows no time-out of its own.
    """
    answer: SimpleQueue[http.client.HTTPResponse | Exception] = SimpleQueue()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=seconds))
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs; what is not HTTP
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
            f"CIFAR-10 is out of reach: expected an answer from {url}, got: {response}\n{ALTERNATIVES}"
        )
    return response


def _stream(response: http.client.HTTPResponse, part: Path, url: str, patience: float) -> None:
    """Write the response to `part`, or after what is there if that was asked for, under a progress bar."""
    goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
    first = part.stat().st_size if goes_on else 0
    size = first + response.length if response.length else 0  # 0 if the host does not say
    console = Console(stderr=True)
    rest = f", from {first / 1e6:,.0f} MB on" if first else ""
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
    """What `response` holds, piece by piece.

    Raises:
        _BrokenOffError: If the connection breaks, so that less than `size` bytes come.
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
