import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cifar_lightning.data.image_files import ImageFiles, find_images, read_image

RED = (200, 10, 10)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp"])
def test_formats(suffix):
    Image.new("RGB", (32, 32), RED).save(f"x.{suffix}")
    image, conversions = read_image(f"x.{suffix}")
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert (image.float().mean((1, 2)) - torch.tensor(RED)).abs().max() < 4
    assert conversions == []


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_modes_become_rgb_and_say_so(mode):
    name = "x.jpg" if mode == "CMYK" else "x.png"
    Image.new(mode, (32, 32), 1 if mode == "1" else 0).save(name)
    image, conversions = read_image(name)
    assert image.shape == (3, 32, 32)
    assert conversions == ["placed on white" if mode in ("LA", "RGBA") else f"converted from {mode}"]


def test_sixteen_bits_are_scaled():
    ramp = torch.linspace(0, 65535, 32 * 32).round().to(torch.int32).view(32, 32)
    Image.fromarray(ramp.numpy().astype("uint16")).save("x.png")
    image, conversions = read_image("x.png")
    assert (image[0].int() - ramp // 257).abs().max() <= 1
    assert conversions == ["converted from I;16"]


def test_a_photograph_is_turned_as_its_camera_was_held():
    picture = Image.new("RGB", (32, 32), RED)
    picture.paste((0, 0, 255), (0, 0, 32, 16))  # blue above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save("x.png", exif=exif)
    image, _ = read_image("x.png")
    assert image[2, 4, 16] < 50
    assert image[2, 28, 16] > 200


def test_transparency_is_laid_on_white():
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save("x.png")
    assert (read_image("x.png")[0] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (640, 480)])
def test_sizes(size):
    Image.new("RGB", size, RED).save("x.png")
    image, conversions = read_image("x.png")
    assert conversions == ["resized"]
    assert (image[:, 10, 10] == torch.tensor(RED)).all()


def test_finds_files_folders_and_globs(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(".") == ["a.JPG", "b.png", "sub/c.webp"]
    assert find_images(["b.png", "sub"]) == ["b.png", "sub/c.webp"]
    assert find_images("*.png") == ["b.png"]
    assert find_images("**/*.webp") == ["sub/c.webp"]
    with pytest.raises(ValueError, match="no such image: expected an existing file or folder or a glob, got 'nowhere"):
        find_images("nowhere.png")
    with pytest.raises(ValueError, match="no images: expected .* files, got none in '\\*.bmp'"):
        find_images("*.bmp")


def test_broken_files_are_named_and_the_rest_is_read():
    Image.new("RGB", (64, 64), RED).save("good.png")
    content = open("good.png", "rb").read()  # noqa: SIM115
    for name, bad in (("empty.png", b""), ("cut.png", content[: len(content) // 2]), ("text.png", b"hello")):
        open(name, "wb").write(bad)  # noqa: SIM115
    batch = ImageFiles(["empty.png", "good.png", "cut.png", "text.png", "gone.png"])[torch.arange(5)]
    assert batch.paths == ["good.png"]
    assert batch.images.shape == (1, 3, 32, 32)
    assert [path for path, _ in batch.broken] == ["empty.png", "cut.png", "text.png", "gone.png"]
    assert all(reason for _, reason in batch.broken)
    assert batch.conversions == ["resized"]


def test_an_int_gives_one_image():
    for index, value in enumerate((10, 20, 30)):
        Image.new("L", (32, 32), value).save(f"{index}.png")
    files = ImageFiles(find_images("*.png"))
    assert [image.float().mean().item() for image in files] == [10, 20, 30]
    assert files[-1].shape == (3, 32, 32)
    (batch,) = DataLoader(files, batch_size=3)
    assert batch.shape == (3, 3, 32, 32)
    with pytest.raises(IndexError):
        files[3]
