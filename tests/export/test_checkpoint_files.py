"""Checkpoints: damaged and hostile files are told from good ones, and a file is never half of one."""

import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.training.whole_checkpoints import WholeCheckpoints

WEIGHTS = torch.arange(3000.0)


def write_checkpoint(path="a.ckpt", **parts):
    parts = {"state_dict": {"w": WEIGHTS}, "hyper_parameters": {"lr": 0.1}} | parts
    torch.save(parts, path)
    return Path(path)


def test_a_good_one_is_read():
    assert torch.equal(read_checkpoint(write_checkpoint())["state_dict"]["w"], WEIGHTS)


def test_a_flipped_bit_is_noticed_wherever_it_matters():
    path = write_checkpoint()
    whole = path.read_bytes()
    refused = []
    for place in random.Random(1).sample(range(len(whole)), 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            refused.append(str(error))
        else:  # in the padding between two parts, say
            assert torch.equal(checkpoint["state_dict"]["w"], WEIGHTS)
            assert checkpoint["hyper_parameters"] == {"lr": 0.1}
    assert len(refused) > 150  # weights are nine tenths of the file
    assert all(
        said.startswith("wrong checkpoint a.ckpt: expected the checkpoint of an MLPClassifier, got") for said in refused
    )


@pytest.mark.parametrize("length", [0, 1, 100, 5000, -1, -100])
def test_a_truncated_one_is_refused_by_name(length):
    path = write_checkpoint()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        ValueError, match=r"^wrong checkpoint a\.ckpt: expected the checkpoint of an MLPClassifier, got \w"
    ):
        read_checkpoint(path)


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_hostile_one_runs_nothing_and_gets_no_advice():
    path = write_checkpoint(hyper_parameters=RunsCode())
    with pytest.raises(ValueError, match="got a file that would run getattr") as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)
    assert not Path("ran").exists()
    path.write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(ValueError, match="wrong checkpoint"):
        read_checkpoint(path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("parts", [{"state_dict": [1]}, {"hyper_parameters": 3}, {"hyper_parameters": None}])
def test_parts_of_another_type_are_refused(parts):
    with pytest.raises(ValueError, match="got one with 'state_dict', 'hyper_parameters'"):
        read_checkpoint(write_checkpoint(**parts))


@pytest.mark.parametrize("content", [[1, 2], 3, torch.ones(3)])
def test_another_content_is_refused(content):
    torch.save(content, "a.ckpt")
    with pytest.raises(ValueError, match=f"got a file that contains {type(content).__name__}"):
        read_checkpoint(Path("a.ckpt"))


def test_writing_fails_whole(monkeypatch):
    """A disk that is full, or a process that dies, amid the new checkpoint."""
    path = write_checkpoint()

    def write_half(path, content):
        path.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space"):
        WholeCheckpoints().save_checkpoint({}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], WEIGHTS)
    assert [each.name for each in Path().iterdir()] == ["a.ckpt"]


def test_nothing_is_written_to_tmpdir(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "does/not/exist")
    WholeCheckpoints().save_checkpoint({"state_dict": {}, "hyper_parameters": {}}, "new/folder/a.ckpt")
    assert read_checkpoint(Path("new/folder/a.ckpt")) == {"state_dict": {}, "hyper_parameters": {}}


def test_what_is_not_of_this_machine_is_left_to_lightning(monkeypatch):
    written = []
    monkeypatch.setattr(
        TorchCheckpointIO, "save_checkpoint", lambda self, checkpoint, path, options: written.append(path)
    )
    WholeCheckpoints().save_checkpoint({}, "s3://bucket/a.ckpt")
    assert written == ["s3://bucket/a.ckpt"]


def test_a_file_that_unpacks_to_more_than_it_has_is_not_unpacked(monkeypatch):
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(30_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)
    with pytest.raises(ValueError, match=r"wrong checkpoint bomb.ckpt: .* a compressed file, of 30,000,000 bytes"):
        read_checkpoint(Path("bomb.ckpt"))
