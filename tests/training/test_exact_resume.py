"""A resumed training is the one that was not stopped, wherever it was stopped."""

import csv
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACCELERATOR
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from cifar_lightning import CIFAR10DataModule, MLPClassifier, OneCycle
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.signal_picture import SignalPicture
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.resume import ExactResume

pytestmark = [pytest.mark.usefixtures("undrawn", "uncompiled"), pytest.mark.filterwarnings("ignore")]

EPOCH = 5  # batches


class StepTimer(Timer):
    """A timer of a clock that strikes with each step, for `max_time` to be the same on every machine."""

    def __init__(self, steps):
        super().__init__(timedelta(seconds=steps))

    def on_fit_start(self, trainer, *args, **kwargs):
        self.trainer = trainer

    def time_elapsed(self, stage="train"):
        return self.trainer.global_step


@dataclass
class Stop:
    """How a training is stopped, how it goes on, and from which file."""

    name: str
    first: dict
    then: dict
    file: str = "last"
    callbacks: list = field(default_factory=list)  # of the training that is stopped, made for each test
    others: list = field(default_factory=list)  # of the one that goes on, and the one that is not stopped
    model: dict = field(default_factory=dict)


def every(steps):
    return partial(ModelCheckpoint, every_n_train_steps=steps, save_top_k=-1, filename="{step}")


def stopping(**options):
    return partial(EarlyStopping, "val_loss", **{"patience": 100} | options)


class EpochAveraging(WeightAveraging):
    """The mean of the weights at the end of each epoch."""

    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


def averaging(**options):
    return partial(EMAWeightAveraging, decay=0.9, **options)


WITHIN = {"val_check_interval": 2}
NO_EPOCHS = {"val_check_interval": 7, "check_val_every_n_epoch": None}
HALF = {"accumulate_grad_batches": 2}  # three steps an epoch
SWA = [partial(StochasticWeightAveraging, 0.05, swa_epoch_start=2, annealing_epochs=2)]

STOPS = [
    Stop("max_steps at an epoch's end", {"max_steps": 5}, {"max_steps": 13}),
    Stop("max_steps at an epoch's end, then max_epochs", {"max_steps": 5}, {"max_epochs": 3}),
    Stop("max_steps within the first epoch", {"max_steps": 3}, {"max_steps": 13}),
    Stop("max_steps within an epoch", {"max_steps": 7}, {"max_steps": 13}),
    Stop("max_steps within an epoch, up to its end", {"max_steps": 7}, {"max_steps": 10}),
    Stop("max_steps within an epoch, and within it again", {"max_steps": 7}, {"max_steps": 9}),
    Stop("max_steps within an epoch, then max_epochs", {"max_steps": 7}, {"max_epochs": 3}),
    Stop("max_steps within an epoch, then both", {"max_steps": 7}, {"max_epochs": 3, "max_steps": 12}),
    Stop("max_steps, early stopping", {"max_steps": 7}, {"max_epochs": 3}, "last", [stopping()], [stopping()]),
    Stop("max_steps, early stopping, 1st", {"max_steps": 3}, {"max_epochs": 3}, "last", [stopping()], [stopping()]),
    *(Stop(f"max_steps, averages with {options}", {"max_steps": 7}, {"max_epochs": 3}, "last", [averaging(**options)],
           [averaging(**options)]) for options in ({}, {"update_every_n_steps": 4, "update_starting_at_epoch": 1})),
    *(Stop(f"SWA, stopped at {steps}", {"max_epochs": 4, "max_steps": steps}, {"max_epochs": 4}, "last", SWA, SWA,
           model={"normalization": "batch", "dropout": "none", "activation": "relu"}) for steps in (7, 10, 13)),
    Stop("max_epochs", {"max_epochs": 1}, {"max_epochs": 3}),
    Stop("max_epochs, then max_steps", {"max_epochs": 1}, {"max_steps": 13}),
    Stop("max_time", {"max_epochs": 3}, {"max_epochs": 3}, "last", [partial(StepTimer, 7)]),
    # (With one of these, the loss grows after the stop, and the validation there is the best of its epoch.)
    *(Stop(f"max_time, a high rate, {lr}", {"max_epochs": 3}, {"max_epochs": 3}, "last", [partial(StepTimer, 7)],
           model={"optimizer": "SGD", "lr": lr}) for lr in (0.2, 0.3)),
    Stop("max_time at an epoch's end", {"max_epochs": 3}, {"max_epochs": 3}, "last", [partial(StepTimer, 5)]),
    Stop("max_time, early stopping", {"max_epochs": 3}, {"max_epochs": 3}, "last",
         [partial(StepTimer, 7), stopping(patience=1, min_delta=9)], [stopping(patience=1, min_delta=9)]),
    Stop("max_time, Performance", {"max_epochs": 4}, {"max_epochs": 4}, "last", [partial(StepTimer, 7)],
         model={"schedule": "Performance"}),
    Stop("patience", {"max_epochs": 9}, {"max_epochs": 9}, "last", [stopping(patience=1, min_delta=9)],
         [stopping(patience=3, min_delta=9)]),
    Stop("patience, without limit", {"max_epochs": 9}, {"max_epochs": 4}, "last", [stopping(patience=1, min_delta=9)]),
    Stop("threshold", {"max_epochs": 4}, {"max_epochs": 4}, "last", [stopping(stopping_threshold=99.0)], [stopping()]),
    Stop("divergence", {"max_epochs": 4}, {"max_epochs": 4}, "last", [stopping(divergence_threshold=0.1)],
         [stopping(divergence_threshold=99.0)]),
    Stop("threshold within an epoch", {"max_epochs": 3} | WITHIN, {"max_epochs": 3} | WITHIN, "last",
         [stopping(stopping_threshold=99.0)], [stopping()]),
    Stop("step checkpoint at the last batch", {"max_epochs": 3}, {"max_epochs": 3}, "step=5", [every(5)]),
    Stop("step checkpoint at the last batch, then max_steps", {"max_epochs": 3}, {"max_steps": 12}, "step=5",
         [every(5)]),
    Stop("step checkpoint within an epoch", {"max_epochs": 3}, {"max_epochs": 3}, "step=7", [every(7)]),
    Stop("step checkpoint, then max_steps", {"max_epochs": 3}, {"max_steps": 12}, "step=7", [every(7)]),
    Stop("step checkpoint at the last batch, no validation", {"max_epochs": 3, "limit_val_batches": 0},
         {"max_epochs": 3, "limit_val_batches": 0}, "step=5", [every(5)]),
    *(Stop(f"validations within an epoch, stopped at {steps}", {"max_steps": steps} | WITHIN,
           {"max_epochs": 3} | WITHIN) for steps in range(3, 9)),
    *(Stop(f"validations within an epoch, checkpoint at {steps}", {"max_epochs": 2} | WITHIN,
           {"max_epochs": 3} | WITHIN, f"step={steps}", [every(steps)]) for steps in range(4, 8)),
    *(Stop(f"validations across epochs, stopped at {steps}", {"max_steps": steps} | NO_EPOCHS,
           {"max_steps": 16} | NO_EPOCHS) for steps in (5, 7, 8)),
    *(Stop(f"validation every other epoch, stopped at {steps}",
           {"max_steps": steps, "check_val_every_n_epoch": 2},
           {"max_epochs": 5, "check_val_every_n_epoch": 2}) for steps in (5, 7, 10)),
    *(Stop(f"accumulation, stopped at {steps}", {"max_steps": steps} | HALF,
           {"max_epochs": 3} | HALF) for steps in (3, 4, 5)),
    Stop("MuonAdamW and 1cycle", {"max_epochs": 3}, {"max_epochs": 3}, "step=7", [every(7)],
         model={"optimizer": "MuonAdamW", "schedule": OneCycle(cycle_momentum=True)}),
    *(Stop(f"{name} within an epoch", {"max_steps": 7}, {"max_epochs": 3}, model=options) for name, options in (
        ("MuonAdamW", {"optimizer": "MuonAdamW"}),
        ("CutMix", {"mixup": 0.0, "cutmix": 1.0}),
        ("CutMix or mixup", {"cutmix": 1.0}),
    )),
    Stop("few batches", {"max_steps": 4, "limit_train_batches": 3}, {"max_epochs": 3, "limit_train_batches": 3}),
]  # fmt: skip


class Signal(nn.Module):
    """The identity, which calls a hook: torch's own hooks would keep steps from being compiled."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def forward(self, inputs):
        self.hook(self, inputs)
        return inputs


def train(folder, stop, callbacks, flags, compiled, checkpoint=None, hook=None):
    """Train, with a hook in each forward pass of the network if one is given; return the trainer."""
    data = CIFAR10DataModule(
        source="synthetic", synthetic_size=60, val_size=20, batch_size=8, order_seed=3, flip=True, shift=2
    )
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    options = {"dropout": "alpha", "dropout_p": 0.2, "lr": 0.01, "schedule": "Power", "mixup": 0.3}
    module = MLPClassifier(hidden_sizes=[8, 8], **options | stop.model)
    if hook:
        module.network.input.append(Signal(hook))
    module.executor = Executor("always" if compiled else "never", steps=3)
    trainer = Trainer(
        **ACCELERATOR, logger=CSVLogger(folder, "", ""), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **{"max_epochs": -1} | flags,
        callbacks=[RunReport(), ExactResume(), *(make() for make in callbacks), BestCheckpoint(), LastCheckpoint()],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def outcome(trainer, logged=True):
    """What is to be equal: the last checkpoint's states, the rows of the log, and those of the report."""
    report = next(callback for callback in trainer.callbacks if isinstance(callback, RunReport))
    folder = Path(trainer.default_root_dir)
    trainer.save_checkpoint(folder / "end.ckpt")
    checkpoint = torch.load(folder / "end.ckpt", weights_only=True)
    log = next(folder.rglob("metrics.csv")).read_text().splitlines() if logged else []
    states = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step",
                                                  "epoch", "random_generators")}  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in report.rows]
    return states, list(csv.DictReader(log)), rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of a training that is not stopped, which several tests compare with."""
    outcomes = {}

    def whole(stop, flags, compiled):
        key = repr((stop.others, stop.model, flags, compiled))
        if key not in outcomes:
            outcomes[key] = outcome(train(tmp_path_factory.mktemp("whole"), stop, stop.others, flags, compiled))
        return outcomes[key]

    return whole


def assert_same(ours, theirs, where=""):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in theirs.items():
            assert_same(ours[name], value, f"{where}.{name}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for index, value in enumerate(theirs):
            assert_same(ours[index], value, f"{where}[{index}]")
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_a_resume_is_exact(tmp_path, whole, stop, compiled):
    if compiled and ("accumulate_grad_batches" in stop.first or stop.callbacks == SWA):
        pytest.skip("accumulated gradients and changing schedules are not compiled")
    train(tmp_path / "first", stop, stop.callbacks, stop.first, compiled)
    (file,) = (tmp_path / "first").rglob(f"{stop.file}.ckpt")
    start = torch.load(file, weights_only=True)["global_step"]
    ours = outcome(train(tmp_path / "resumed", stop, stop.others, stop.then, compiled, file))
    theirs = whole(stop, stop.then, compiled)
    assert 0 < start < theirs[0]["global_step"]
    check_resumed(ours, theirs, start)


def check_resumed(ours, theirs, start):
    """Check that two outcomes are equal, of which the first is a training that was resumed after step `start`."""
    assert_same(ours[0], theirs[0])
    assert_same(ours[2], theirs[2])
    logged = theirs[1][-len(ours[1]) :]
    assert ours[1] == [{name: row[name] for name in ours[1][0]} for row in logged]
    assert [int(row["step"]) for row in ours[1] if row["train_step_loss"]] == list(range(start, ours[0]["global_step"]))


INTERRUPTED = Stop("", {}, {})
MOMENTS = [("step", call) for call in (1, 3, 4, 5, 6, 8)] + [("validation", call) for call in (2, 3)]  # 1 is a check


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("file", ["last", "epoch=*"], ids=["last", "save_on_exception"])
@pytest.mark.parametrize(("during", "call"), MOMENTS)
def test_a_resume_after_ctrl_c_is_exact(tmp_path, whole, during, call, file, compiled):
    seen = []

    def interrupt(layer, inputs):
        seen.append("step" if layer.training else "validation")
        if seen[-1] == during and seen.count(during) == call:
            os.kill(os.getpid(), signal.SIGINT)

    callbacks = [partial(ModelCheckpoint, save_on_exception=True)]
    check_interrupted(tmp_path, whole, SystemExit, interrupt, callbacks, file, compiled)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("call", range(1, 8))
def test_a_resume_with_waiting_gradients_is_exact(tmp_path, whole, call):
    seen = []

    def interrupt(layer, inputs):
        seen.append(layer.training)
        if seen.count(True) == call:
            os.kill(os.getpid(), signal.SIGINT)

    check_interrupted(tmp_path, whole, SystemExit, interrupt, [], "last", False, accumulate_grad_batches=3)


@pytest.mark.parametrize("call", [2, 5, 6])
@pytest.mark.parametrize("by", ["ModelCheckpoint", "OnExceptionCheckpoint"])
def test_a_resume_after_an_error_in_a_step_is_exact(tmp_path, whole, call, by):
    seen = []

    def fail(layer, inputs):
        seen.append(layer.training)
        if seen.count(True) == call:
            raise RuntimeError("out of memory")

    callbacks = {
        "ModelCheckpoint": partial(ModelCheckpoint, filename="failed-{epoch}", save_on_exception=True),
        "OnExceptionCheckpoint": partial(OnExceptionCheckpoint, tmp_path / "first", "failed"),
    }
    check_interrupted(tmp_path, whole, RuntimeError, fail, [callbacks[by]], "failed*", False)


@pytest.mark.parametrize("first", [True, False], ids=["resume first", "average first"])
def test_an_average_leaves_out_an_epoch_that_is_cut_short_wherever_its_callback_is(first):
    average = EpochAveraging()
    callbacks = [ExactResume(), average] if first else [average, ExactResume()]
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20, batch_size=8)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fit = Trainer(**ACCELERATOR, **options, max_steps=EPOCH + 2, callbacks=callbacks)
    fit.fit(MLPClassifier(hidden_sizes=[4]), data)
    assert int(average._average_model.n_averaged) == 1
    assert "on_train_epoch_end" not in vars(average)


def test_an_epoch_that_was_cut_short_is_drawn_once(tmp_path):
    pictures = [partial(SignalPicture, num_images=4)]
    train(tmp_path / "first", INTERRUPTED, pictures, {"max_steps": 7}, False)
    (file,) = (tmp_path / "first").rglob("last.ckpt")
    resumed = train(tmp_path / "resumed", INTERRUPTED, pictures, {"max_epochs": 3}, False, file)
    (picture,) = (callback for callback in resumed.callbacks if isinstance(callback, SignalPicture))
    assert [row["epoch"] for row in picture.rows if row["layer"] == 0] == [0, 1, 2, 3]


class KilledError(Exception):
    """Ends a training with nothing written."""


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("flags", [WITHIN, NO_EPOCHS, {"check_val_every_n_epoch": 2}], ids=str)
def test_a_training_that_is_killed_many_times_is_exact(tmp_path, whole, flags, compiled):
    flags, kills, path = {"max_epochs": 5} | flags, 0, None
    draw = random.Random(0)
    while True:
        left = draw.randint(3, 12)

        def kill(layer, inputs):
            nonlocal left
            left -= 1
            if left == 0:
                raise KilledError

        try:
            ours = outcome(train(tmp_path / str(kills), INTERRUPTED, [], flags, compiled, path, kill))
            break
        except KilledError:
            path = next((tmp_path / str(kills)).rglob("last.ckpt"), path)
            kills += 1
    assert kills > 2
    theirs = whole(INTERRUPTED, flags, compiled)
    assert_same(ours[0], theirs[0])
    assert_same(ours[2], theirs[2])


@pytest.mark.parametrize(
    "limit", [{"patience": 1, "min_delta": 9.0}, {"stopping_threshold": 99.0}, {"divergence_threshold": 0.1}], ids=str
)
@pytest.mark.parametrize("flags", [{}, WITHIN], ids=["each epoch", "within an epoch"])
def test_a_training_that_stopped_early_stays_stopped(tmp_path, limit, flags):
    stop = Stop("", {}, {})
    first = train(tmp_path / "first", stop, [stopping(**limit)], {"max_epochs": 9} | flags, False)
    assert 0 < first.global_step < 45
    (file,) = (tmp_path / "first").rglob("last.ckpt")
    again = train(tmp_path / "again", stop, [stopping(**limit)], {"max_epochs": 9} | flags, False, file)
    assert again.global_step == first.global_step
    assert_same(outcome(again, logged=False)[2], outcome(first)[2])


def check_interrupted(folder, whole, exception, hook, callbacks, file, compiled, **flags):
    """Interrupt a training, and check that a resume from the file that is left is exact."""
    flags = {"max_epochs": 4, "val_check_interval": 2} | flags
    with pytest.raises(exception):
        train(folder / "first", INTERRUPTED, callbacks, flags, compiled, hook=hook)
    path = max((folder / "first").rglob(f"{file}.ckpt"), key=lambda path: path.stat().st_mtime)
    start = torch.load(path, weights_only=True)["global_step"]
    ours = outcome(train(folder / "resumed", INTERRUPTED, [], flags, compiled, path))
    check_resumed(ours, whole(INTERRUPTED, flags, compiled), start)


DDP = (
    "--data.source=synthetic --data.synthetic_size=100 --data.val_size=20 --data.batch_size=8 --model.dropout=alpha "
    "--model.hidden_sizes=2x8 --trainer.accelerator=cpu --trainer.devices=2 --trainer.strategy=ddp "
    "--trainer.log_every_n_steps=1 --trainer.enable_progress_bar=false "
)  # 5 batches an epoch


@pytest.mark.slow
def test_a_resume_on_two_devices_is_exact(tmp_path):
    def fit(root, steps, *flags):
        flags = [*DDP.split(), f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={tmp_path / root}", *flags]
        subprocess.run([sys.executable, "-m", "cifar_lightning", "fit", *flags], check=True, timeout=120)
        (last,) = (tmp_path / root).rglob("last.ckpt")
        with next((tmp_path / root).rglob("metrics.csv")).open() as file:
            return last, torch.load(last, weights_only=True), list(csv.DictReader(file))

    last, _, _ = fit("first", 7)
    _, ours, logged = fit("resumed", 13, f"--ckpt_path={last}")
    _, theirs, whole = fit("whole", 13)
    for name in ("state_dict", "optimizer_states", "random_generators", "global_step", "epoch"):
        assert_same(ours[name], theirs[name], name)
    for row, expected in zip(logged, whole[-len(logged) :], strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():  # the sums of two devices are added in another order
            assert float(value or 0) == pytest.approx(float(expected[name] or 0), rel=1e-6)
