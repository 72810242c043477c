import hashlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cifar_lightning.data.download import download
from cifar_lightning.data.sources import DataUnavailableError

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole sends all, /garbled does but says no size, /broken sends half, /slow a little at a time, /html a page."""

    def do_GET(self):
        self.server.asked.append(self.path)
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

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
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


@pytest.mark.parametrize(
    ("path", "md5", "message"),
    [
        ("whole", "0" * 32, "wrong download from .*: expected the MD5 0+, received"),
        ("html", MD5, r"wrong download from .* received [0-9a-f]{32} \(26 bytes of text/html\)"),
        ("broken", MD5, "the download of .* broke: expected the whole file, received"),
        ("missing", MD5, "out of reach: expected an answer .*404"),
    ],
)
def test_leaves_nothing_behind_that_is_not_right(host, tmp_path, path, md5, message):
    with pytest.raises(ValueError, match=message):
        download(f"{host}/{path}", tmp_path / "file", md5)
    assert list(tmp_path.iterdir()) == []


def test_names_the_alternatives_when_it_is_slow(host, tmp_path, capfd):
    download(f"{host}/slow", tmp_path / "file", MD5, patience=0.1)
    assert "The host is slow" in (said := capfd.readouterr().err)
    assert "--data.data_dir" in said
    assert "--data.source synthetic" in said


def test_a_host_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing
        start = time.monotonic()
        with pytest.raises(DataUnavailableError, match="out of reach"):
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
        with pytest.raises(DataUnavailableError, match="out of reach: .* received: 220 mail ready"):
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
    with pytest.raises(ValueError, match="can't write .*: expected a folder with write access"):
        download(f"{host}/whole", tmp_path / "file", MD5)


def test_a_folder_that_is_a_file(host, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't write .*: expected a folder with write access"):
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
    assert len(server.asked) == 3
    assert list(tmp_path.iterdir()) == []


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
