"""A training that is killed again and again, at any moment, ends as one that never was: bit for bit."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

pytestmark = pytest.mark.slow

FLAGS = [
    *(f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--data.synthetic_size=600", "--data.batch_size=32"),
    *("--model.hidden_sizes=3x20", "--model.optimizer=NAdam", "--model.dropout_p=0.02"),
    *("--trainer.max_epochs=60", "--trainer.val_check_interval=5", "--execution.compile=never"),
    *("--trainer.callbacks+=LRFinder", "--trainer.callbacks.num_steps=150"),
    *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.patience=999"),
]
#: Kills of each kind: at any time, with a file half written, and with one that is written but not in its place yet.
KINDS = {"time": 12, "half": 6, "unplaced": 6}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(root, kind, after):
    """What a process does: train on from the last checkpoint, if there is one, and die in the file number `after`."""
    from cifar_lightning.cli.main import main

    left = after

    def is_last():
        nonlocal left
        left -= 1
        return left < 0

    write, replace = Path.write_bytes, os.replace

    def write_half(path, content):
        if is_last():
            write(path, bytes(content)[: len(content) // 2])
            die()
        return write(path, content)

    def never_replace(*paths):
        if is_last():
            die()
        replace(*paths)

    if kind == "half":
        Path.write_bytes = write_half
    if kind == "unplaced":
        os.replace = never_replace
    os.environ.pop("PL_GLOBAL_SEED", None)
    resume = ["--ckpt_path=last"] if any(Path(root).rglob("last.ckpt")) else []
    main(["fit", *FLAGS, f"--trainer.default_root_dir={root}", *resume])


def live(root, kind, after):
    """Let a process train, and kill it after so many seconds, or files; whether it came to its end before."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(root, kind, after))
    process.start()
    if kind == "time":
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def outcome(root):
    last = max(Path(root).rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(last, weights_only=True)


def assert_same(ours, theirs, where=""):
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in theirs.items():
            if name != "seconds":
                assert_same(ours[name], value, f"{where}.{name}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, f"{where}[{index}]")
    else:
        assert ours == theirs, where


def test_24_kills_change_nothing():
    start = time.monotonic()
    assert live("whole", "", 0)
    duration = time.monotonic() - start
    draw = random.Random(0)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    draw.shuffle(kinds)
    # In files, a life is at most a twentieth of the training, in time it may begin but not get anywhere.
    kills = 0
    for kind in kinds:
        after = draw.uniform(0.2, 0.5 + duration / 12) if kind == "time" else draw.randrange(1, 12)
        if live("killed", kind, after):
            break
        kills += 1
    print(f"{kills} kills, {duration:.1f} s without any")
    assert kills == len(kinds), "it came to its end too soon"
    assert live("killed", "", 0)
    ours, theirs = outcome("killed"), outcome("whole")
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "random_generators"):
        assert_same(ours[name], theirs[name], name)
    rows = [state["callbacks"]["RunReport"]["rows"] for state in (ours, theirs)]
    assert_same(*rows)
    assert len(rows[0]) == 60
    stopping = [
        next(v for k, v in each["callbacks"].items() if k.startswith("EarlyStopping")) for each in (ours, theirs)
    ]
    assert_same(*stopping)
