"""Which images are taken: CIFAR-10 where it is or can be had, synthetic ones only where they are asked for."""

import pytest
import torch

from cifar_lightning.data import availability
from cifar_lightning.data.availability import load_images, make_available
from cifar_lightning.data.sources import DataUnavailableError


@pytest.fixture
def asked(monkeypatch):
    """The directories that a download was asked for; the host is out of reach."""
    directories = []

    def fail(directory):
        directories.append(directory)
        raise DataUnavailableError("CIFAR-10 is out of reach")

    monkeypatch.setattr(availability, "download_official", fail)
    return directories


def test_synthetic_images_need_nothing(asked):
    make_available("synthetic", None, download=True)
    assert asked == []
    assert load_images("synthetic", None, 50).name == "synthetic"


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_is_not_replaced(asked, tmp_path, download):
    with pytest.raises(DataUnavailableError, match="out of reach" if download else "expected the official files"):
        make_available("cifar10", str(tmp_path), download)
    assert asked == [tmp_path] * download
    with pytest.raises(DataUnavailableError, match="got an empty directory"):
        load_images("cifar10", str(tmp_path), 50)


@pytest.mark.parametrize("download", [True, False])
def test_what_replaces_cifar10_says_so(asked, tmp_path, capsys, download):
    make_available("cifar10_or_synthetic", str(tmp_path), download)
    assert "USING SYNTHETIC IMAGES instead" in capsys.readouterr().err
    images = load_images("cifar10_or_synthetic", str(tmp_path), 50)
    assert (images.name, len(images.train_images)) == ("synthetic", 50)


@pytest.mark.parametrize(
    ("files", "received"),
    [
        ([], "got an empty directory"),
        (["a"], "got only a\n"),
        (["b", "a", "c"], "got only a, b, c\n"),
        (["b", "a", "c", "d"], r"got only a, b, c, \.\.\.\n"),
    ],
)
def test_the_message_says_what_is_there(tmp_path, files, received):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(DataUnavailableError, match=received):
        make_available("cifar10", str(tmp_path), download=False)


def test_files_that_are_there_are_taken(asked, cifar10_dir):
    make_available("cifar10_or_synthetic", cifar10_dir, download=True)
    assert asked == []
    images = load_images("cifar10_or_synthetic", cifar10_dir, 50)
    assert images.name == "CIFAR-10"
    assert images.train_images.dtype == torch.uint8
