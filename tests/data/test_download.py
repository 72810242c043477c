import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cifar_lightning.data.download import download
from cifar_lightning.data.sources import DataUnavailableError

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole sends all, /broken half of what it promises, /slow a little at a time."""

    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
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
def host():
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_downloads_and_says_the_size(host, tmp_path, capfd):
    target = tmp_path / "new" / "file"
    assert download(f"{host}/whole", target, MD5) == target
    assert target.read_bytes() == CONTENT
    assert "(1 MB)" in capfd.readouterr().err
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("path", "md5", "message"),
    [
        ("whole", "0" * 32, "wrong download from .*: expected the MD5 0+, received"),
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
