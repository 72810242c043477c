"""A resumed training is the one that was not stopped, wherever it was stopped."""

import csv
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.compiled import step as compiled_step
from cifar_lightning.training import obstacles
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.resume import ExactResume

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.filterwarnings("ignore")]

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
    return lambda: ModelCheckpoint(every_n_train_steps=steps, save_top_k=-1, filename="{step}")


def stopping(**options):
    return lambda: EarlyStopping("val_loss", **{"patience": 100} | options)


WITHIN = {"val_check_interval": 2}
NO_EPOCHS = {"val_check_interval": 7, "check_val_every_n_epoch": None}
HALF = {"accumulate_grad_batches": 2}  # three steps an epoch

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
    Stop("max_epochs", {"max_epochs": 1}, {"max_epochs": 3}),
    Stop("max_epochs, then max_steps", {"max_epochs": 1}, {"max_steps": 13}),
    Stop("max_time", {"max_epochs": 3}, {"max_epochs": 3}, "last", [lambda: StepTimer(7)]),
    Stop("max_time at an epoch's end", {"max_epochs": 3}, {"max_epochs": 3}, "last", [lambda: StepTimer(5)]),
    Stop("max_time, early stopping", {"max_epochs": 3}, {"max_epochs": 3}, "last",
         [lambda: StepTimer(7), stopping(patience=1, min_delta=9)], [stopping(patience=1, min_delta=9)]),
    Stop("max_time, Performance", {"max_epochs": 4}, {"max_epochs": 4}, "last", [lambda: StepTimer(7)],
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
    Stop("few batches", {"max_steps": 4, "limit_train_batches": 3}, {"max_epochs": 3, "limit_train_batches": 3}),
]  # fmt: skip


def train(folder, stop, callbacks, flags, compiled, checkpoint=None):
    """Train; return the trainer."""
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20, batch_size=8, order_seed=3)
    torch.manual_seed(3)
    module = MLPClassifier(hidden_sizes=[8, 8], dropout="alpha", dropout_p=0.2, lr=0.01,
                           **{"schedule": "Power"} | stop.model)  # fmt: skip
    module.executor = Executor("always" if compiled else "never", steps=3)
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger(folder, "", ""), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **{"max_epochs": -1} | flags,
        callbacks=[RunReport(), ExactResume(), *(make() for make in callbacks), BestCheckpoint(), LastCheckpoint()],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def outcome(trainer):
    """What is to be equal: the last checkpoint's states, the rows of the log, and those of the report."""
    report = next(callback for callback in trainer.callbacks if isinstance(callback, RunReport))
    folder = Path(trainer.default_root_dir)
    trainer.save_checkpoint(folder / "end.ckpt")
    checkpoint = torch.load(folder / "end.ckpt", weights_only=True)
    with next(folder.rglob("metrics.csv")).open() as file:
        logged = list(csv.DictReader(file))
    states = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step",
                                                  "epoch", "random_generators")}  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in report.rows]
    return states, logged, rows


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


@pytest.fixture
def _eager(monkeypatch):
    """Do all but compile, which is tested elsewhere and takes long."""
    monkeypatch.setattr(compiled_step, "compile_once", lambda function: function)
    monkeypatch.setattr(obstacles, "has_compiler", lambda: True)


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_a_resume_is_exact(tmp_path, stop, compiled):
    if compiled and "accumulate_grad_batches" in stop.first:
        pytest.skip("accumulated gradients are not compiled")
    train(tmp_path / "first", stop, stop.callbacks, stop.first, compiled)
    (file,) = (tmp_path / "first").rglob(f"{stop.file}.ckpt")
    start = torch.load(file, weights_only=True)["global_step"]
    torch.rand(7)
    ours = outcome(train(tmp_path / "resumed", stop, stop.others, stop.then, compiled, file))
    theirs = outcome(train(tmp_path / "whole", stop, stop.others, stop.then, compiled))
    assert 0 < start < theirs[0]["global_step"]
    assert_same(ours[0], theirs[0])
    assert_same(ours[2], theirs[2])
    logged = theirs[1][-len(ours[1]) :]
    assert ours[1] == [{name: row[name] for name in ours[1][0]} for row in logged]
    assert [int(row["step"]) for row in ours[1] if row["train_step_loss"]] == list(range(start, ours[0]["global_step"]))
