"""Fashion MNIST's idx files, here of two images a class, and files that only look like them."""

import gzip
from pathlib import Path

import pytest
import torch

from cifar_lightning.data import fashion_mnist
from cifar_lightning.data.availability import describe_images, load_images, make_available
from cifar_lightning.data.sources import DataUnavailableError


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(fashion_mnist, "PER_CLASS", {"train": 2, "t10k": 1})


def idx(*header, content):
    return b"".join(number.to_bytes(4, "big") for number in header) + bytes(content)


def write(folder, packed=True, **changed):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part, per_class in fashion_mnist.PER_CLASS.items():
        n = 10 * per_class
        files = {
            f"{part}-images-idx3-ubyte": idx(0x803, n, 28, 28, content=[i // 784 for i in range(n * 784)]),
            f"{part}-labels-idx1-ubyte": idx(0x801, n, content=[i % 10 for i in range(n)]),
        }
        for name, content in files.items():
            content = changed.get(part + name[len(part) + 1 :][:6], content)
            Path(folder, name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["mine", "mine/FashionMNIST/raw", "mine/fashion-mnist"])
def test_the_files_are_found_and_read(packed, place):
    write(place, packed)
    make_available("fashion_mnist", "mine", download=False)
    images = load_images("fashion_mnist", "mine", 1)
    assert images.train_images.shape == (20, 1, 28, 28)
    assert images.train_images[:, 0, 3, 3].tolist() == list(range(20))
    assert images.test_labels.tolist() == list(range(10))
    assert describe_images("fashion_mnist", "mine") == (images.shape, images.classes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trainimages": b""}, "got 0 bytes"),
        ({"trainimages": idx(0x803, 20, 28, 28, content=range(9))}, "got 25 bytes, which begin with"),
        ({"trainimages": idx(0x803, 20, 28, 28, content=bytes(20 * 784 + 1))}, "or more, which begin"),
        ({"t10kimages": idx(0x803, 10, 28, 29, content=bytes(7840))}, r"begin with \[2051, 10, 28, 29\]"),
        ({"trainlabels": idx(0x802, 20, content=bytes(20))}, r"begins with \[2049, 20\]"),
        (
            {"trainlabels": idx(0x801, 20, content=[9] * 20)},
            "expected 2 of each of the 10 Fashion MNIST classes.*MNIST's files have",
        ),
        ({"trainlabels": idx(0x801, 20, content=[200] * 20)}, "expected 2 of each of the 10 Fashion MNIST classes"),
    ],
)
def test_files_that_are_something_else(changed, said):
    write("mine", **changed)
    with pytest.raises(ValueError, match=said):
        load_images("fashion_mnist", "mine", 1)


def test_a_broken_archive():
    write("mine")
    path = Path("mine/train-images-idx3-ubyte.gz")
    for content in (b"no gzip", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz: expected an idx file"):
            load_images("fashion_mnist", "mine", 1)


def test_no_files(tmp_path):
    for use in (lambda: make_available("fashion_mnist", ".", True), lambda: load_images("fashion_mnist", ".", 1)):
        with pytest.raises(DataUnavailableError, match=r"no Fashion MNIST in '\.': expected train-images-idx3-ubyte"):
            use()


def test_labels_are_integers():
    write("mine")
    assert load_images("fashion_mnist", "mine", 1).train_labels.dtype == torch.int64
