"""Files are written whole, or the old ones stay."""

import errno
from pathlib import Path

import pytest

from cifar_lightning.files import replacing, write_whole


def test_a_file_is_replaced():
    path = Path("a.txt")
    for content in (b"one", b"two"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in Path().iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else():
    path = Path("a.txt")
    path.write_bytes(b"old")

    def write_half():
        with replacing(path) as beside:
            beside.write_bytes(b"ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_bytes() == b"old"
    assert [each.name for each in Path().iterdir()] == ["a.txt"]


def test_until_it_is_whole_the_old_file_stays():
    path = Path("a.png")
    path.write_bytes(b"old")
    with replacing(path) as beside:
        assert beside.parent == path.parent  # a move from another file system would be a copy
        assert beside.suffix == ".png"
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_it_is_on_the_disk_before_it_replaces(monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda descriptor: done.append("flush"))
    monkeypatch.setattr("os.replace", lambda old, new: done.append("replace"))
    write_whole(Path("a.txt"), b"new")
    assert done[:2] == ["flush", "replace"]


def test_an_error_of_the_system_names_the_file(monkeypatch):
    def fill(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=r"No space left on device: 'a\.txt'"):
        write_whole(Path("a.txt"), b"new")
