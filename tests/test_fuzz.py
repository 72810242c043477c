"""Files that were damaged in any way are read whole or refused in a message: no crash, no hang, no half a file."""

import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_result
from data.test_sources import official  # noqa: F401 (a fixture)
from PIL import Image

from cifar_lightning.cli.config_files import load_config
from cifar_lightning.data.image_files import ImageFiles
from cifar_lightning.data.sources import load_official
from cifar_lightning.experiments.grid import read_grid
from cifar_lightning.experiments.results import Result
from cifar_lightning.export.checkpoint_files import read_checkpoint

#: Seconds that a reader may take for one of these small files.
PATIENCE = 10
#: What stands for much, or for something else, in the formats that are text.
WORDS = [b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"\n", b": ", b"&a [*a]", b"!!python/name:os.system",
         b"9" * 40, b"\x00", b"\xff\xfe", b"- ", b"\xe2\x80\xae", b"true"]  # fmt: skip


def mutate(content, draw):
    """One to three damages: bytes that are flipped, lost, repeated, moved, replaced, or cut off."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        if not data:
            break
        start = draw.randrange(len(data))
        end = min(len(data), start + draw.choice([1, 2, 8, 100, 5000]))
        match draw.randrange(7):
            case 0:
                data[start] ^= 1 << draw.randrange(8)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end]
            case 3:
                part = data[start:end]
                del data[start:end]
                place = draw.randint(0, len(data))
                data[place:place] = part
            case 4:
                data[start:end] = draw.randbytes(end - start)
            case 5:
                data[start:end] = draw.choice(WORDS)
            case _:
                del data[start:]
    return bytes(data)


class Reader:
    """A file in a reader's format, the reader, and what else a reading must be to count as whole."""

    suffix = ""

    def check(self, result):
        """Whether all of the file was read."""


class Checkpoint(Reader):
    suffix = ".ckpt"

    def make(self):
        self.weights = torch.arange(300.0)
        torch.save({"state_dict": {"w": self.weights}, "hyper_parameters": {"lr": 0.1}}, "whole")
        return Path("whole").read_bytes()

    def read(self, path):
        return read_checkpoint(path)

    def check(self, result):
        assert torch.equal(result["state_dict"]["w"], self.weights)
        assert result["hyper_parameters"] == {"lr": 0.1}


class Picture(Reader):
    def make(self):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"whole{self.suffix}")
        return Path(f"whole{self.suffix}").read_bytes()

    def read(self, path):
        return ImageFiles([str(path)])[torch.tensor([0])]

    def check(self, result):
        """A batch has an image or says why not."""
        assert len(result.images) + len(result.broken) == 1
        assert result.images.shape[1:] == (3, 32, 32)
        assert all(reason for _, reason in result.broken)


class Png(Picture):
    suffix = ".png"


class Jpeg(Picture):
    suffix = ".jpg"


class Webp(Picture):
    suffix = ".webp"


class Config(Reader):
    suffix = ".yaml"

    def make(self):
        return (ROOT / "configs" / "swish_alpha_dropout_one_cycle.yaml").read_bytes()

    def read(self, path):
        return load_config(str(path))


class GridFile(Reader):
    suffix = ".yaml"

    def make(self):
        return (ROOT / "configs" / "grids" / "activations.yaml").read_bytes()

    def read(self, path):
        grid = read_grid(str(path))
        return grid.points() if len(grid.options) < 5 else None


class ResultFile(Reader):
    suffix = ".json"

    def make(self):
        make_result().save(Path("whole.json"))
        return Path("whole.json").read_bytes()

    def read(self, path):
        return Result.load(path)

    def check(self, result):
        assert str(result)
        assert result.line()


READERS = [Checkpoint, Png, Jpeg, Webp, Config, GridFile, ResultFile]


def too_long(*args):
    raise AssertionError(f"it took more than {PATIENCE} s")


def survive(reader, content, draw, count):
    """Damage a file so often; return how many were refused."""
    refused = 0
    path = Path(f"damaged{reader.suffix}")
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        for _ in range(count):
            damaged = mutate(content, draw)
            path.write_bytes(damaged)
            signal.alarm(PATIENCE)
            try:
                result = reader.read(path)
            except Exception as error:
                if not isinstance(error, ValueError) or not str(error).strip():
                    raise AssertionError(f"{type(error).__name__}: {error} for {damaged[:2000]!r}") from error
                refused += 1
            else:
                reader.check(result)
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [40, pytest.param(1400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_refused_or_read_whole(reader, count):
    reader = reader()
    content = reader.make()
    path = Path(f"good{reader.suffix}")
    path.write_bytes(content)
    reader.check(reader.read(path))
    refused = survive(reader, content, random.Random(count), count)
    print(f"{type(reader).__name__}: {refused} of {count} refused")


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["folder", "archive"])
def test_nothing_of_cifar10_is_unpickled_that_is_not_the_official_file(official, place, count):  # noqa: F811
    folder, archive = official
    file, whole = (folder / "data_batch_3", folder) if place == "folder" else (archive, archive)
    content, draw = file.read_bytes(), random.Random(count)
    for _ in range(count):
        damaged = mutate(content, draw)
        if damaged == content:
            continue
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="altered or truncated file"):
            load_official(whole)
