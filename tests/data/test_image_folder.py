"""Folders of images by class: found, read, cached, and refused with the first file that is wrong."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_lightning.data.availability import describe_images, load_images, make_available
from cifar_lightning.data.image_cache import CACHE
from cifar_lightning.data.image_files import find_images
from cifar_lightning.data.image_folder import load_folder
from cifar_lightning.data.sources import DataUnavailableError


def draw(path, value=0, size=(6, 5), mode="RGB"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "1", "I;16") else (value, 0, 9)).save(path)


def fill(root, classes=("cat", "dog", "eel"), count=6, **options):
    for k, name in enumerate(classes):
        for i in range(count):
            draw(f"{root}/{name}/{i}.png", 10 * k + i, **options)


def test_each_sixth_image_is_for_testing():
    fill("mine", count=13)
    images = load_folder(Path("mine"))
    assert images.name == "folder mine"
    assert images.classes == ("cat", "dog", "eel")
    assert images.shape == (3, 5, 6)
    assert images.train_labels.bincount().tolist() == [11, 11, 11]
    assert images.test_labels.bincount().tolist() == [2, 2, 2]
    # Files by name: 0, 1, 10, 11, 12, 2, ...: the sixth is 2.png, the twelfth 8.png.
    assert images.test_images[:2, 0, 0, 0].tolist() == [2, 8]
    assert (images.train_images[:, 2] == 9).all()


def test_folders_of_their_own_for_training_and_testing():
    fill("mine/train", count=3)
    fill("mine/test", classes=("dog",), count=2)
    images = load_folder(Path("mine"))
    assert (len(images.train_labels), images.test_labels.tolist()) == (9, [1, 1])


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (1, 5, 6)), ("1", (1, 5, 6)), ("I;16", (1, 5, 6)), ("RGB", (3, 5, 6))]
)
def test_grey_or_colour_goes_by_the_first(mode, shape):
    fill("mine", mode=mode)
    assert load_folder(Path("mine")).shape == shape
    assert describe_images("folder", "mine") == (shape, ("cat", "dog", "eel"))


def test_grey_images_among_those_in_colour_become_so():
    fill("mine")
    draw("mine/dog/grey.png", 77, mode="L")
    images = load_folder(Path("mine"))
    assert [77, 77, 77] in images.train_images[:, :, 0, 0].tolist() + images.test_images[:, :, 0, 0].tolist()


def test_only_what_has_changed_is_read_again(monkeypatch):
    fill("mine")
    first = load_folder(Path("mine"))
    assert Path("mine", CACHE).exists()
    monkeypatch.setattr("cifar_lightning.data.image_folder._read", None)  # which would be called
    again = load_folder(Path("mine"))
    assert torch.equal(first.train_images, again.train_images)
    draw("mine/cat/0.png", 99)
    with pytest.raises(TypeError):
        load_folder(Path("mine"))


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_cache_is_replaced(content):
    fill("mine")
    expected = load_folder(Path("mine"))
    Path("mine", CACHE).write_bytes(content)
    assert torch.equal(load_folder(Path("mine")).train_images, expected.train_images)
    assert Path("mine", CACHE).stat().st_size > 100


def test_a_cache_of_something_else_is_not_believed():
    fill("mine")
    load_folder(Path("mine"))
    content = torch.load(Path("mine", CACHE), weights_only=True)
    floats = [part.float() for part in content["images"]]
    for change in ({"images": None}, {"images": floats}, {"images": floats[:3]}, {"key": "0"}):
        torch.save(content | change, Path("mine", CACHE))
        assert load_folder(Path("mine")).train_labels.dtype == torch.int64


def test_a_folder_that_can_not_be_written_to_is_read(monkeypatch):
    def refuse(*args):
        raise PermissionError

    fill("mine")
    monkeypatch.setattr("cifar_lightning.data.image_cache.torch.save", refuse)
    assert len(load_folder(Path("mine")).classes) == 3
    assert not Path("mine", CACHE).exists()


def test_hidden_folders_and_other_files_are_left_out():
    fill("mine")
    fill("mine/.hidden")
    Path("mine/readme.txt").touch()
    Path("mine/cat/Thumbs.db").touch()
    draw("mine/cat/._1.png")
    assert len(load_folder(Path("mine")).train_labels) == 15


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda: draw("mine/dog/2.png", size=(7, 5)), "as in mine/cat/0.png, got 7 x 5 in mine/dog/2.png"),
        (lambda: Path("mine/dog/3.png").write_bytes(b"text"), "cannot read mine/dog/3.png: expected an image"),
        (lambda: Path("mine/cat/0.png").write_bytes(b""), "cannot read mine/cat/0.png: expected an image"),
        (lambda: Path("mine/fox").mkdir(), "no images in mine/fox: expected one folder per class"),
        (lambda: (fill("mine/train"), fill("mine/test", ["fox"])), "wrong folder mine/test/fox: expected one of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spoil, said):
    fill("mine")
    spoil()
    with pytest.raises(ValueError, match=said):
        load_folder(Path("mine"))


@pytest.mark.parametrize(("path", "target"), [("mine/dog/2.png", "../../there.png"), ("mine/dog", "../there")])
def test_links_are_followed(path, target):
    # As torchvision's ImageFolder does: people make subsets of a data set by links.
    fill("mine")
    expected = load_folder(Path("mine")).train_images
    Path(path).rename(f"there{Path(path).suffix}")
    Path(path).symlink_to(target)
    assert torch.equal(load_folder(Path("mine")).train_images, expected)


@pytest.mark.parametrize(
    "spoil", [os.mkfifo, os.mkdir, *(partial(os.symlink, target) for target in ("2.png", "nowhere.png", "/dev/zero"))]
)
def test_what_is_no_file_is_not_waited_for(spoil):
    fill("mine")
    Path("mine/dog/2.png").unlink()
    spoil("mine/dog/2.png")
    with pytest.raises(ValueError, match="wrong file mine/dog/2.png: expected an image, got a folder, a pipe"):
        load_folder(Path("mine"))
    assert len(find_images("mine")) == 17


def test_colour_among_grey_ones():
    fill("mine", mode="L")
    draw("mine/eel/4.png")
    with pytest.raises(ValueError, match="expected grey, as in mine/cat/0.png, got colour in mine/eel/4.png"):
        load_folder(Path("mine"))


def test_one_class():
    fill("mine", ["cat"])
    with pytest.raises(ValueError, match="only one class in mine: expected at least two .* got only 'cat'"):
        load_folder(Path("mine"))


@pytest.mark.parametrize("inside", [[], ["a/notes.txt"], ["0.png"]])
def test_no_images(inside):
    Path("mine").mkdir()
    for name in inside:
        draw(f"mine/{name}") if name.endswith("png") else (Path("mine/a").mkdir(), Path("mine", name).touch())
    with pytest.raises(DataUnavailableError, match="no images in mine: expected one folder per class") as error:
        make_available("folder", "mine", download=True)
    assert (inside[0].split("/")[0] if inside else "an empty directory") in str(error.value)


def test_a_folder_is_a_source():
    fill("mine")
    make_available("folder", "mine", download=False)
    assert load_images("folder", "mine", 1).name == "folder mine"
