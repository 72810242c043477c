"""A disk that is full or read-only: a real file system of a few hundred kilobytes, which only root can mount."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from cifar_lightning.__main__ import run as run_command
from cifar_lightning.data.image_cache import CACHE
from cifar_lightning.data.image_folder import load_folder
from cifar_lightning.export.checkpoint_files import read_checkpoint

FLAGS = [*SMALL, "--trainer.max_epochs=2", "--execution.compile=never", "--model.hidden_sizes=2x16"]
CLONE_NEWNS = 0x20000
#: Kilobytes of a checkpoint of FLAGS.
CHECKPOINT = 640


@pytest.fixture(scope="module")
def own_mounts():
    """Mounts that this process alone sees, so that nothing stays mounted whatever becomes of it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system takes Linux, and root")
    if ctypes.CDLL(None).unshare(CLONE_NEWNS):
        pytest.skip("mounting a file system takes a container that allows it")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


class Disk:
    """A file system of so many kilobytes in the folder `disk`, and a file in it that takes the room."""

    def __init__(self, kilobytes):
        self.folder = Path("disk").absolute()
        self.folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", self.folder], check=False)
        if mounted.returncode:
            pytest.skip("mounting a file system takes a container that allows it")
        os.chdir(self.folder)

    def fill(self, left=0):
        """Leave so many kilobytes."""
        free = os.statvfs(self.folder)
        room = free.f_bavail * free.f_frsize - left * 1024
        with (self.folder / "filler").open("ab") as file:
            file.write(bytes(max(0, room)))

    def make_room(self):
        (self.folder / "filler").unlink()

    def make_read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def unmount(self):
        os.chdir(self.folder.parent)
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(own_mounts, tmp_path):
    """A disk of 20 MB."""
    disk = Disk(20_000)
    yield disk
    disk.unmount()


@pytest.fixture
def fail_for_room(disk, capfd):
    """Run a command that has no room, and return what it printed."""

    def fail(*args, reason="No space left on device"):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(list(map(str, args)))
        printed = capfd.readouterr()
        assert stop.value.code == 1, printed.err
        assert "Traceback" not in printed.err
        assert printed.err.count("error:") == 1
        error = printed.err[printed.err.index("error:") :]
        assert error.startswith(f"error: can't write {disk.folder}/"), error
        assert re.search(reason, error), error
        assert "expected a folder with room and write access" in error
        assert not list(disk.folder.rglob(".new-*"))
        return printed.out + printed.err

    return fail


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("left", [0, 8, 16, 24, 40, CHECKPOINT + 80], ids=lambda left: f"{left}k")
def test_a_training_that_has_no_room_from_the_start(disk, fail_for_room, left):
    disk.fill(left)
    fail_for_room("fit", *FLAGS)
    for path in disk.folder.rglob("*.ckpt"):
        read_checkpoint(path)


@pytest.mark.usefixtures("undrawn")
def test_a_training_whose_disk_fills_goes_on_when_there_is_room(disk, fail_for_room, run):
    disk.fill(int(2.5 * CHECKPOINT))  # best and last of the first epoch
    printed = fail_for_room("fit", *FLAGS, "--trainer.default_root_dir=full")
    (last,) = disk.folder.rglob("last.ckpt")
    assert read_checkpoint(last)["epoch"] == 0
    assert f"to resume: cifar-lightning fit --ckpt_path {last.relative_to(disk.folder)}" in printed
    again = ["fit", *FLAGS, f"--ckpt_path={last}"]
    fail_for_room(*again, "--trainer.default_root_dir=full")
    disk.make_room()
    run(*again, "--trainer.default_root_dir=resumed")
    run("fit", *FLAGS, "--trainer.default_root_dir=whole")
    resumed, whole = (read_checkpoint(next(Path(root).rglob("last.ckpt"))) for root in ("resumed", "whole"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(torch.as_tensor(resumed["state_dict"][name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("part", ["draw_learning_curves", "log_best"])
def test_a_report_without_room(disk, fail_for_room, monkeypatch, part):
    from cifar_lightning.callbacks import report

    original = getattr(report, part)

    def fill_first(*args, **kwargs):
        disk.fill()
        return original(*args, **kwargs)

    monkeypatch.setattr(report, part, fill_first)
    fail_for_room("fit", *FLAGS, "--trainer.max_epochs=1")
    (last,) = disk.folder.rglob("last.ckpt")
    assert read_checkpoint(last)["epoch"] == 0


def test_a_read_only_disk(disk, fail_for_room):
    disk.make_read_only()
    fail_for_room("fit", *FLAGS, reason="Read-only file system")


def test_a_disk_that_becomes_read_only(disk, fail_for_room, monkeypatch):
    from cifar_lightning.training.whole_checkpoints import WholeCheckpoints

    save = WholeCheckpoints.save_checkpoint

    def save_read_only(self, checkpoint, path, storage_options=None):
        if checkpoint["epoch"]:
            disk.make_read_only()
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save_read_only)
    printed = fail_for_room("fit", *FLAGS, reason="Read-only file system")
    assert "to resume: cifar-lightning fit --ckpt_path" in printed


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("left", [0, 24, CHECKPOINT])
def test_a_sweep_without_room(disk, fail_for_room, left):
    disk.fill(left)
    fail_for_room("sweep", "--vary={model.lr: [0.01, 0.02]}", *FLAGS)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("left", [0, 60, 200, CHECKPOINT + 200])
def test_a_search_without_room_goes_on_when_there_is_some(disk, fail_for_room, left):
    pytest.importorskip("optuna")
    search = ["search", "--vary={model.lr: [0.01, 0.02]}", "--trials=1", *FLAGS, "--trainer.max_epochs=1"]
    disk.fill(left)
    printed = fail_for_room(*search, reason="No space left on device|database or disk is full")
    assert "run the same command again to resume" in printed
    if left == 200:  # of those that had begun a trial
        disk.make_room()
        run_command(search)
        assert Path("runs/search/inline/results.csv").read_text().count("complete") == 1


@pytest.mark.slow
def test_a_study_without_room_goes_on_when_there_is_some(disk):
    pytest.importorskip("plotly")
    command = [sys.executable, "-m", "cifar_lightning", "study", "one_cycle", "--seeds", "1", *FLAGS]
    disk.fill(200)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: one_cycle, seed 1 failed: " in done.stderr
    disk.make_room()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def trained(own_mounts, tmp_path_factory):
    """The best checkpoint of a training on another disk."""
    folder = tmp_path_factory.mktemp("trained")
    run_command(["fit", *FLAGS, "--trainer.max_epochs=1", f"--trainer.default_root_dir={folder}"])
    (best,) = folder.rglob("best.ckpt")
    return best


FORMS = {"torch-export": "net.pt2", "safetensors": "net.safetensors", "hub": "net", "onnx": "net.onnx"}


QUICK, SLOW = ["torch-export", "safetensors", "hub"], ["onnx"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("forms", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_an_export_without_room(trained, disk, fail_for_room, forms):
    pytest.importorskip("safetensors")
    disk.fill(100)
    for form in forms:
        out = disk.folder / FORMS[form]
        fail_for_room("export", "--ckpt_path", trained, "--format", form, "--out", out)
        assert form == "hub" or not out.exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_without_room(trained, disk, fail_for_room, command):
    for left in (0, 12, 28):
        disk.fill(left)
        fail_for_room(command, "--ckpt_path", trained)
        disk.make_room()
        shutil.rmtree("runs", ignore_errors=True)


def test_a_cache_of_images_without_room_is_none(disk):
    for number in range(12):
        image = Image.fromarray(np.full((200, 200, 3), number, dtype=np.uint8))
        folder = Path("images") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:02}.png")
    disk.fill(20)
    images = load_folder(Path("images"))
    assert sorted(images.train_images.amax((1, 2, 3)).tolist()) == list(range(10))
    assert not [path for path in Path("images").rglob("*") if path.name.startswith(".")]
    disk.make_room()
    load_folder(Path("images"))
    assert (Path("images") / CACHE).is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_training_whose_cache_of_code_has_no_room_takes_plain_steps(disk, trained, run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(disk.folder))
    disk.fill(20)
    os.chdir(tmp_path)
    long = ["--trainer.max_epochs=3000", "--trainer.max_time=00:00:00:10"]  # long enough to be worth compiling
    said = run("fit", *FLAGS, "--execution.compile=auto", *long, "--model.hidden_sizes=2x17")
    assert "plain, because torch could not compile them: OSError: [Errno 28] No space left on device" in said
    assert "epoch   2" in said
