"""A run's folder says how to repeat it."""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from cifar_lightning import CIFAR10DataModule
from cifar_lightning.cli.run_folder import make_run_folder
from cifar_lightning.cli.run_record import git_state
from cifar_lightning.export.checkpoint_files import read_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")

FLAGS = [*SMALL, "--model.hidden_sizes=2x8", "--trainer.max_epochs=1", "--execution.compile=never"]


def record(folder="."):
    (path,) = Path(folder).rglob("environment.json")
    return json.loads(path.read_text())


def test_what_is_needed_to_repeat_a_run_is_in_its_folder(run):
    run("fit", *FLAGS)
    said = record()
    assert said["command"] == shlex.join(["cifar-lightning", "fit", *FLAGS])
    assert said["folder"] == str(Path.cwd())
    assert said["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert said["git"]["folder"] is None
    assert said["data"]["name"] == "synthetic"
    assert said["device"]["type"] in ("cpu", "cuda", "mps")
    assert said["device"]["devices"] == 1


def test_a_run_that_is_repeated_by_its_command_is_the_same(run):
    run("fit", *FLAGS, "--trainer.default_root_dir=first")
    words = shlex.split(record("first")["command"])
    assert words.pop(0) == "cifar-lightning"
    run(*words, "--trainer.default_root_dir=second")
    assert record("first")["data"] == record("second")["data"]
    first, second = (torch.load(next(Path(root).rglob("last.ckpt")), weights_only=True) for root in ("first", "second"))
    for name, value in first["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(second["state_dict"][name], value)


def fingerprint(**options):
    data = CIFAR10DataModule(**{"source": "synthetic", "synthetic_size": 300, "val_size": 60} | options)
    data.setup()
    return data.fingerprint


def test_the_fingerprint_is_that_of_the_data_and_the_split():
    assert fingerprint() == fingerprint(batch_size=7, order_seed=5)
    others = [fingerprint(synthetic_size=310), fingerprint(val_size=70), fingerprint(classes=[0, 1]), fingerprint()]
    assert len(set(others)) == 4
    assert CIFAR10DataModule(source="synthetic").fingerprint is None


def git(*arguments):
    who = {f"GIT_{role}_{what}": "x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *arguments], check=True, capture_output=True, env=os.environ | who)


def test_the_state_of_a_checkout():
    folder = Path("checkout")
    folder.mkdir()
    assert git_state(folder) is None
    git("init", str(folder))
    assert git_state(folder) is None  # without a commit
    (folder / "a").touch()
    git("-C", str(folder), "add", "a")
    git("-C", str(folder), "commit", "-m", "Begin")
    first = git_state(folder)
    assert first is not None
    assert not first["dirty"]
    (folder / "b").touch()
    assert git_state(folder) == {"commit": first["commit"], "dirty": True}


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(Path.cwd()) is None


def test_runs_that_start_at_once_have_a_folder_each():
    with ThreadPoolExecutor(20) as pool:
        folders = list(pool.map(lambda _: make_run_folder(Path("runs/a"), ""), range(20)))
    assert len(set(folders)) == 20
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.slow
def test_two_runs_of_one_command_at_once_disturb_each_other_in_nothing():
    command = [sys.executable, "-m", "cifar_lightning", "fit", *FLAGS, "--trainer.default_root_dir=both"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = sorted(Path("both").glob("*/*"))
    names = [sorted(path.relative_to(run).name for path in run.rglob("*.*") if "tfevents" not in path.name)
             for run in (first, second)]  # fmt: skip
    assert names[0] == names[1]
    weights = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (first, second)]
    for name, value in weights[0].items():
        assert torch.equal(torch.as_tensor(weights[1][name]), torch.as_tensor(value)), name
