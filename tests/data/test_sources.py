import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from cifar_lightning.data.sources import (
    DataUnavailableError,
    ImageSet,
    find_data_dir,
    find_official,
    load_official,
    make_synthetic,
)

CLASSES = [f"class{k}" for k in range(10)]


class Python2Pickler(pickle._Pickler):
    """Writes every string as Python 2 did, which made the official files."""

    def save_string(self, obj):
        content = obj if isinstance(obj, bytes) else obj.encode()
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small set in the official files' format, with torchvision's checksums set to match, and its archive."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "files" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        with (folder / name).open("wb") as file:
            Python2Pickler(file, protocol=2).dump(content)
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name):
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        return write(name, {"data": data, "labels": rng.integers(0, 10, 4).tolist()})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [batch(name) for name, _ in CIFAR10.test_list])
    name, md5 = write("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"filename": name, "md5": md5})
    archive = tmp_path / "archive" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return folder, archive


def test_folder_and_archive_hold_the_same(official):
    folder, archive = official
    from_folder, from_archive = load_official(folder), load_official(archive)
    assert from_folder.name == "CIFAR-10"
    assert from_folder.classes == tuple(CLASSES)
    assert from_folder.train_images.shape == (20, 3, 32, 32)
    assert from_folder.test_labels.shape == (4,)
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(from_folder, part), getattr(from_archive, part))


def test_images_are_those_that_torchvision_reads(official):
    folder, _ = official
    ours = load_official(folder)
    theirs = CIFAR10(folder.parent, train=True, download=False)
    assert torch.equal(ours.train_images.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
    assert ours.train_labels.tolist() == theirs.targets


def test_finds_the_files_in_each_form(official, tmp_path):
    folder, archive = official
    assert find_official(folder.parent) == folder
    assert find_official(folder) == folder
    assert find_official(archive.parent) == archive
    assert find_official(tmp_path) is None


@pytest.mark.parametrize("harm", ["truncate", "alter"])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_nothing_is_unpickled_from_a_harmed_file(official, form, harm, monkeypatch):
    folder, archive = official
    place = folder if form == "folder" else archive
    file = folder / "data_batch_3" if form == "folder" else archive
    content = file.read_bytes()
    file.write_bytes(content[:-9] if harm == "truncate" else content[:-9] + b"otherwise")
    harmed, unpickled, loads = file.read_bytes(), [], pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda data, **options: unpickled.append(data) or loads(data, **options))
    with pytest.raises(ValueError, match=rf"altered or truncated file .*{file.name}: expected the official MD5"):
        load_official(place)
    assert harmed not in unpickled
    assert form == "folder" or not unpickled


def add(archive, name, kind=tarfile.REGTYPE, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    archive.addfile(member, io.BytesIO(bytes(size)))


HOSTILE = {
    "above": lambda archive: add(archive, "../escaped", size=9),
    "absolute": lambda archive: add(archive, "/tmp/escaped", size=9),
    "link": lambda archive: (add(archive, "link", tarfile.SYMTYPE, "/"), add(archive, "link/tmp/escaped", size=9)),
    "hard link": lambda archive: add(archive, "cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE, "/etc/passwd"),
    "device": lambda archive: add(archive, "cifar-10-batches-py/data_batch_1", tarfile.CHRTYPE),
    "pipe": lambda archive: add(archive, "cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE),
    "many": lambda archive: [add(archive, f"cifar-10-batches-py/{number}") for number in range(2000)],
    "zeros": lambda archive: add(archive, "cifar-10-batches-py/data_batch_1", size=30_000_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_with_members_that_escape_is_not_even_opened(official, kind, monkeypatch):
    _, path = official
    with tarfile.open(path, "w:gz") as archive:
        HOSTILE[kind](archive)
    before = sorted(Path().absolute().rglob("*"))
    monkeypatch.setattr(tarfile, "open", None)
    with pytest.raises(ValueError, match="altered or truncated file .*: expected the official MD5"):
        load_official(path)
    assert sorted(Path().absolute().rglob("*")) == before
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.write_text("<html>Not found</html>"), r"expected the official MD5 .* \(22 bytes\)"),
        (lambda file: file.write_bytes(b""), r"expected the official MD5 .* \(0 bytes\)"),
        (lambda file: os.truncate(file, 10**12), r"expected the official MD5 .* \(1,000,000,000,000 bytes\)"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "got a folder, a device or a pipe"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "got a folder, a device or a pipe"),
        (lambda file: (file.unlink(), file.mkdir()), "got a folder, a device or a pipe"),
    ],
    ids=["HTML", "empty", "endless", "pipe", "device", "folder"],
)
def test_what_is_in_the_place_of_a_file_is_refused_in_bounded_memory(official, form, harm, message, monkeypatch):
    monkeypatch.setattr("cifar_lightning.data.sources.MOST_BYTES", 1_000_000)
    folder, archive = official
    harm(folder / "data_batch_3" if form == "folder" else archive)
    with pytest.raises(
        ValueError, match=message if form == "folder" or not archive.is_dir() else "CIFAR-10 is incomplete"
    ):
        load_official(folder if form == "folder" else archive)


def test_missing_file(official):
    folder, _ = official
    (folder / "test_batch").unlink()
    with pytest.raises(DataUnavailableError, match="expected the file test_batch in"):
        load_official(folder)


def test_data_dir(tmp_path, monkeypatch):
    assert str(find_data_dir(None)) == "data"
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    assert find_data_dir(None) == tmp_path
    (tmp_path / "given").mkdir()
    assert find_data_dir(str(tmp_path / "given")) == tmp_path / "given"
    with pytest.raises(DataUnavailableError, match=r"data_dir must be .*'nowhere' \(no such directory\)"):
        find_data_dir("nowhere")
    monkeypatch.setenv("CIFAR10_DIR", "nowhere")
    with pytest.raises(DataUnavailableError, match="CIFAR10_DIR must be"):
        find_data_dir(None)


def test_image_set_checks_itself():
    images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 9])
    with pytest.raises(ValueError, match=r"wrong images in x: expected uint8 of shape \(2, C, H, W\) with C 1 or 3"):
        ImageSet("x", tuple(CLASSES), images.permute(0, 2, 3, 1), labels, images, labels)
    with pytest.raises(ValueError, match="wrong labels in x: expected 0 to 9, got 0 to 10"):
        ImageSet("x", tuple(CLASSES), images, labels, images, labels + torch.tensor([0, 1]))


def test_synthetic_set():
    made = make_synthetic(500)
    assert made.name == "synthetic"
    assert len(made.train_labels) == 500
    assert len(made.test_labels) == 100
    assert len(made.classes) == 10
    assert made.train_labels.unique().tolist() == list(range(10))
    assert torch.equal(made.train_images, make_synthetic(500).train_images)


@pytest.mark.real
def test_real_cifar10(cifar10_dir):
    real = load_official(find_official(find_data_dir(cifar10_dir)))
    assert real.train_labels.bincount().tolist() == [5000] * 10
    assert real.test_labels.bincount().tolist() == [1000] * 10
    assert real.classes[:3] == ("airplane", "automobile", "bird")
    assert real.train_labels[:5].tolist() == [6, 9, 9, 4, 1]


def test_an_archive_is_preferred_to_a_folder_that_is_being_unpacked(official):
    folder, archive = official
    (folder / "test_batch").unlink()
    assert find_official(folder.parent) == folder  # alone, it is named in the error
    beside = archive.rename(folder.parent / archive.name)
    assert find_official(folder.parent) == beside
    assert load_official(beside).test_labels.shape == (4,)


def test_a_file_that_cannot_be_read(official):
    folder, _ = official
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    with pytest.raises(ValueError, match="cannot read .*test_batch: expected a readable file, got"):
        load_official(folder)


def test_an_image_set_is_shown_in_one_line():
    assert repr(make_synthetic(50)) == "ImageSet(synthetic: 50 training and 10 test images of 3 x 32 x 32, 10 classes)"
