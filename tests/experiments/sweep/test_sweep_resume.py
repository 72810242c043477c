"""A sweep that is stopped and gone on with is the sweep that was never stopped, to the last bit."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL
from lightning.pytorch import Callback

from cifar_lightning.experiments.grid import read_grid
from cifar_lightning.experiments.sweep.command import SweepCLI, main

FLAGS = [
    f"--config={ROOT}/configs/one_cycle.yaml",  # with dropout
    *SMALL,
    "--data.batch_size=20",  # 12 batches an epoch
    "--model.hidden_sizes=3x20",
    "--model.normalization=batch",
    "--model.optimizer=NAdam",
    "--config={model: {lr: 0.001}}",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=5",
]
AVERAGING = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
AVERAGING += ["--trainer.callbacks.update_every_n_steps=5"]
VARY = "{model.lr: [0.001, 0.003], seed_everything: [1, 2]}"

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.filterwarnings("ignore")]


class Interrupt(Callback):
    """Ctrl-C after so many steps."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.after:
            os.kill(os.getpid(), signal.SIGINT)


def run(root, *flags, vary=VARY):
    main([*([f"--vary={vary}"] if vary else []), *FLAGS, *flags, f"--trainer.default_root_dir={root}"])
    return newest(root)


def newest(root):
    return max(root.glob("*/sweep_*"), key=lambda folder: folder.stat().st_ctime)


def weights(folder):
    return {
        path.relative_to(folder).as_posix(): torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(folder.glob("*/checkpoints/*.ckpt"))
    } | {"all": torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]}


def table(folder):
    with (folder / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same(ours, theirs):
    assert table(ours) == table(theirs)
    of_ours, of_theirs = weights(ours), weights(theirs)
    assert of_ours.keys() == of_theirs.keys()
    for name, state in of_theirs.items():
        for key, value in state.items():
            assert torch.equal(of_ours[name][key], value), f"{name}: {key}"


def interrupt(root, steps, *flags):
    """Begin a sweep that is interrupted after so many steps."""

    class CLI(SweepCLI):
        def instantiate_trainer(self, **kwargs):
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, Interrupt(steps))
            return trainer

    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        CLI([*FLAGS, *flags, f"--trainer.default_root_dir={root}"], read_grid(VARY), "")
    checkpoint = torch.load(newest(root) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--trainer.accumulate_grad_batches=5", "--trainer.gradient_clip_val=0.1"],
        ["--model.schedule=Performance", "--model.schedule.patience=0"],
        ["--execution.compile=always", "--execution.steps=4"],
        [
            *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"),
            *("--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=0.05"),
        ],
        [*AVERAGING, "--execution.compile=always", "--execution.steps=4"],
        [
            *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"),
            *("--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=0.05", *AVERAGING),
        ],
    ],
    ids=["plain", "accumulated", "by a metric", "compiled", "stopping early", "averaged", "averaged, stopping early"],
)
@pytest.mark.parametrize("end", ["within an epoch", "between epochs"])
def test_interrupted(tmp_path, uncompiled, flags, end):
    whole = run(tmp_path / "whole", *flags)
    an_epoch = 3 if "--trainer.accumulate_grad_batches=5" in flags else 12
    interrupt(tmp_path / "cut", 2 * an_epoch - (end == "within an epoch"), *flags)
    resumed = run(tmp_path / "cut", *flags, "--ckpt_path=last", vary=None)
    assert_same(resumed, whole)


@pytest.mark.slow
def test_killed(tmp_path):
    """The epoch that a kill cuts short is trained again."""
    whole = run(tmp_path / "whole")
    code = "import sys; from cifar_lightning.experiments.sweep.command import main; main(sys.argv[1:])"
    flags = [f"--vary={VARY}", *FLAGS, f"--trainer.default_root_dir={tmp_path / 'cut'}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as here: sums of two threads differ
    process = subprocess.Popen([sys.executable, "-c", code, *flags], env=env)
    while not list((tmp_path / "cut").glob("*/sweep_*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert_same(run(tmp_path / "cut", "--ckpt_path=last"), whole)


def test_what_varied_is_known(tmp_path, capfd):
    interrupt(tmp_path / "cut", 13)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", "--ckpt_path=last", vary="{model.lr: [0.1]}")
    assert (
        "the grid has changed: expected no --vary, or the one that the sweep was started with" in capfd.readouterr().err
    )
    last = newest(tmp_path / "cut") / "checkpoints/last.ckpt"
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", f"--ckpt_path={last}", "--model.lr=0.5", vary=None)
    assert "--model.lr contradicts the checkpoint" in capfd.readouterr().err
    main([f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path / 'cut'}"])  # with the config that it has saved
    copies = list(newest(tmp_path / "cut").glob("*/checkpoints/best.ckpt"))
    assert len(copies) == 4
    with pytest.raises(SystemExit):
        main([*FLAGS, f"--ckpt_path={copies[0]}"])
    assert "expected the last.ckpt of a sweep" in capfd.readouterr().err


def test_a_longer_sweep_finishes_or_begins_a_cycle(tmp_path, capfd):
    run(tmp_path, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        run(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert "expected 12 optimizer steps, as when the checkpoint was written, got 24" in capfd.readouterr().err
    folder = run(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", "--cycle.resume=new")
    rows = (folder / "lr=0.003,seed_everything=2/metrics.csv").read_text().splitlines()
    rates = [float(row.split(",")[1]) for row in rows[1:] if row.split(",")[1]]
    assert rates == pytest.approx(sorted(rates[:3]) + rates[3:])  # it climbs again
    assert min(rates) < 0.003 / 2


def test_ctrl_c_names_the_command_that_goes_on(tmp_path, capfd, monkeypatch):
    flags = [f"--trainer.callbacks+={__name__}.Interrupt", "--trainer.callbacks.after=4"]
    with pytest.raises(SystemExit):
        run(tmp_path, *flags)
    printed = "".join(capfd.readouterr())
    (line,) = re.findall(r"to resume: cifar-lightning sweep (.*)", printed)
    assert line == f"--ckpt_path {newest(tmp_path)}/checkpoints/last.ckpt"
    main([*line.split(), "--trainer.callbacks=null"])
    assert "written to" in capfd.readouterr().out
