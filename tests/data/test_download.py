import errno
import hashlib
import io
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar_lightning.data.download import download
from cifar_lightning.data.sources import DataUnavailableError

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()
THIRD = len(CONTENT) // 3 + 1


class Handler(BaseHTTPRequestHandler):
    """/whole sends all, /garbled does but says no size, /broken sends half, /slow a little at a time, /html a page.

    /flaky sends a third and breaks off, but goes on from where it is asked to; so does /once, which then is gone.
    """

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path in ("/flaky", "/once"):
            self.send_a_third()
            return
        if self.path == "/html":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>Please log in</html>")
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "many" if self.path == "/garbled" else str(len(CONTENT)))
        self.end_headers()
        if self.path == "/slow":
            for start in range(0, len(CONTENT), len(CONTENT) // 8):
                self.wfile.write(CONTENT[start : start + len(CONTENT) // 8])
                time.sleep(0.05)
        else:
            self.wfile.write(CONTENT[: len(CONTENT) // (2 if self.path == "/broken" else 1)])

    def send_a_third(self):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.starts.append(start)
        if start >= len(CONTENT):
            self.send_error(416)
            return
        if self.path == "/once" and len(self.server.starts) > 1 and not self.server.is_back:
            self.send_error(503)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start : start + THIRD])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.starts, server.is_back = [], [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def host(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_downloads_and_says_the_size(host, tmp_path, capfd):
    target = tmp_path / "new" / "file"
    assert download(f"{host}/whole", target, MD5) == target
    assert target.read_bytes() == CONTENT
    assert "(1 MB)" in capfd.readouterr().err
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_host_that_does_not_say_the_size(host, tmp_path):
    assert download(f"{host}/garbled", tmp_path / "file", MD5).read_bytes() == CONTENT


def test_what_a_killed_process_left_is_no_obstacle(host, tmp_path):
    for name in ("file.part", "file.lock"):
        (tmp_path / name).write_bytes(CONTENT[:1000])
    assert download(f"{host}/whole", tmp_path / "file", MD5).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_download_that_breaks_off_goes_on_where_it_was(host, server, tmp_path, capfd):
    assert download(f"{host}/flaky", tmp_path / "file", MD5).read_bytes() == CONTENT
    assert server.starts == [0, THIRD, 2 * THIRD]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert "(1 MB, resuming at 0 MB)" in (said := capfd.readouterr().err)
    assert said.count("the connection broke") == 2


def test_a_later_call_goes_on_where_an_earlier_one_broke_off(host, server, tmp_path):
    with pytest.raises(DataUnavailableError, match="cannot download CIFAR-10.*503"):
        download(f"{host}/once", tmp_path / "file", MD5)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:THIRD]
    server.is_back = True
    assert download(f"{host}/once", tmp_path / "file", MD5).read_bytes() == CONTENT
    assert server.starts == [0, THIRD, THIRD, 2 * THIRD]


@pytest.mark.parametrize("left", [b"x" * THIRD, CONTENT + b"x", CONTENT, b""], ids=["other", "longer", "all", "none"])
def test_what_is_left_of_an_earlier_try_does_no_harm(host, server, tmp_path, left):
    (tmp_path / "file.part").write_bytes(left)
    assert download(f"{host}/flaky", tmp_path / "file", MD5).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (server.asked == []) == (left == CONTENT)


def test_a_disk_that_is_full(host, tmp_path, monkeypatch):
    """The error of the system, raised where the file is written: no disk is filled."""
    opened = Path.open

    def open_full(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        if "w" in mode or "a" in mode:
            file = io.BufferedWriter(FullDisk(file.detach()))
        return file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DataUnavailableError, match="cannot write .* enough space, .*No space left on device"):
        download(f"{host}/whole", tmp_path / "file", MD5)
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.RawIOBase):
    def __init__(self, file):
        self.file, self.room = file, 100_000

    def writable(self):
        return True

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self.file.write(data)

    def close(self):
        self.file.close()
        super().close()


@pytest.mark.parametrize(
    ("path", "md5", "message"),
    [
        ("whole", "0" * 32, "wrong download from .*: expected the MD5 0+, got"),
        ("html", MD5, r"wrong download from .* got [0-9a-f]{32} \(26 bytes of text/html\)"),
        ("broken", MD5, "the download of .* broke off: expected the whole file, got"),
        ("missing", MD5, "cannot download CIFAR-10: expected an answer .*404"),
    ],
)
def test_leaves_nothing_behind_that_is_not_right(host, tmp_path, path, md5, message):
    with pytest.raises(ValueError, match=message):
        download(f"{host}/{path}", tmp_path / "file", md5)
    assert list(tmp_path.iterdir()) == ([tmp_path / "file.part"] if path == "broken" else [])


def test_names_the_alternatives_when_it_is_slow(host, tmp_path, capfd):
    download(f"{host}/slow", tmp_path / "file", MD5, patience=0.1)
    assert "The host is slow" in (said := capfd.readouterr().err)
    assert "--data.data_dir" in said
    assert "--data.source synthetic" in said


def test_a_host_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing
        start = time.monotonic()
        with pytest.raises(DataUnavailableError, match="cannot download CIFAR-10"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/", tmp_path / "file", MD5, reach_seconds=0.5)
        assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_speak_http(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as host:

        def answer():
            connection, _ = host.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DataUnavailableError, match="cannot download CIFAR-10: .* got: 220 mail ready"):
            download(f"http://127.0.0.1:{host.getsockname()[1]}/", tmp_path / "file", MD5)


def test_a_whole_file_is_not_downloaded_again_and_another_is_replaced(host, server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(CONTENT[:-1])
    download(f"{host}/whole", target, MD5)
    assert target.read_bytes() == CONTENT
    download(f"{host}/whole", target, MD5)
    assert server.asked == ["/whole"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_access(host, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot write .*: expected a writable folder"):
        download(f"{host}/whole", tmp_path / "file", MD5)


def test_a_folder_that_is_a_file(host, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write .*: expected a writable folder"):
        download(f"{host}/whole", tmp_path / "file" / "file", MD5)


PROCESSES = multiprocessing.get_context("spawn")


def fetch(url, target, started, results):
    """What a process does: download, and say what it found when it was told that the file is there."""
    started.wait()
    try:
        results.put(hashlib.md5(download(url, target, MD5).read_bytes()).hexdigest())
    except Exception as error:
        results.put(repr(error))


def at_once(count, url, target):
    """What so many processes found that began at the same time."""
    started, results = PROCESSES.Barrier(count), PROCESSES.SimpleQueue()
    processes = [PROCESSES.Process(target=fetch, args=(url, target, started, results)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def test_processes_at_once_share_one_download(host, server, tmp_path, capfd):
    target = tmp_path / "new" / "file"
    assert at_once(2, f"{host}/slow", target) == [MD5] * 2
    assert server.asked == ["/slow"]
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert capfd.readouterr().err.count("waiting for another process") == 1


@pytest.mark.slow
def test_processes_at_once_each_try_a_host_that_breaks_off(host, server, tmp_path):
    found = at_once(3, f"{host}/broken", tmp_path / "file")
    assert all("the download of" in each and "broke" in each for each in found)
    assert len(server.asked) == 3 + 1  # the first goes on once, in vain
    assert list(tmp_path.iterdir()) == [tmp_path / "file.part"]


def test_whoever_waits_goes_on_when_the_other_is_killed(host, server, tmp_path):
    target = tmp_path / "file"
    started, results = PROCESSES.Barrier(1), PROCESSES.SimpleQueue()
    other = PROCESSES.Process(target=fetch, args=(f"{host}/slow", target, started, results))
    other.start()
    while not server.asked:
        time.sleep(0.01)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert download(f"{host}/whole", target, MD5).read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]


def test_threads_at_once_share_one_download(host, server, tmp_path):
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(download, f"{host}/slow", tmp_path / "file", MD5) for _ in range(3)]
    assert all(each.result().read_bytes() == CONTENT for each in done)
    assert server.asked == ["/slow"]
