"""Downloading CIFAR-10's official archive, with its size, its progress and a way out when it is slow."""

import hashlib
import http.client
import time
import urllib.request
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

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
        DataUnavailableError: If the host is out of reach or the connection breaks.
        ValueError: If what came is not the official archive.
    """
    from torchvision.datasets import CIFAR10

    return download(CIFAR10.url, directory / CIFAR10.filename, CIFAR10.tgz_md5)


def download(
    url: str, target: Path, md5: str, reach_seconds: float = REACH_SECONDS, patience: float = PATIENCE_SECONDS
) -> Path:
    """Download `url` to `target`, which appears only once it is whole and its checksum right.

    Raises:
        DataUnavailableError: If nothing answers within `reach_seconds`, or the connection breaks.
        ValueError: If the MD5 is not `md5`.
    """
    response = _open(url, reach_seconds)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        received = _stream(response, part, url, patience)
        if received != md5:
            raise ValueError(f"wrong download from {url}: expected the MD5 {md5}, received {received}")
        part.replace(target)
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise DataUnavailableError(
            f"the download of {url} broke: expected the whole file, received {error!r}\n{ALTERNATIVES}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _open(url: str, seconds: float) -> http.client.HTTPResponse:
    """Open `url`, or give up after `seconds`: in a thread, for a name look-up knows no time-out of its own."""
    answer: SimpleQueue[http.client.HTTPResponse | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=seconds))
        except OSError as error:  # URLError and time-outs among them
            answer.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=seconds)
    except Empty:
        response = TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(response, OSError):
        raise DataUnavailableError(
            f"CIFAR-10 is out of reach: expected an answer from {url}, received: {response}\n{ALTERNATIVES}"
        )
    return response


def _stream(response: http.client.HTTPResponse, part: Path, url: str, patience: float) -> str:
    """Write the response to `part` under a progress bar, and return its MD5."""
    size = int(response.headers.get("Content-Length", 0))
    console = Console(stderr=True)
    console.print(f"downloading {url} ({size / 1e6:,.0f} MB)", highlight=False)
    digest = hashlib.md5(usedforsecurity=False)
    start, received, warned = time.monotonic(), 0, False
    columns = (
        TextColumn("CIFAR-10"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with response, part.open("wb") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("download", total=size or None)
        while block := response.read(1 << 16):
            file.write(block)
            digest.update(block)
            received += len(block)
            progress.update(task, completed=received)
            elapsed = time.monotonic() - start
            left = elapsed * (size - received) / received
            if left > patience and elapsed > min(5.0, patience) and not warned:
                warned = True
                progress.console.print(
                    f"The host is slow: about {left / 60:.0f} minutes left.\n{ALTERNATIVES}", highlight=False
                )
    if received < size:
        raise ConnectionError(f"{received:,} of {size:,} bytes")
    return digest.hexdigest()
