"""Every option of Lightning's Trainer acts: each with a value, and what must be seen of it."""

import csv
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.cli.main import CLI

LR = 0.1
#: Eight batches an epoch.
FLAGS = [*SMALL, "--model.hidden_sizes=1x8", "--model.optimizer=SGD", f"--model.lr={LR}", "--trainer.accelerator=cpu"]
STOPPER = [
    "--trainer.max_epochs=9",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=val_loss",
    "--trainer.callbacks.stopping_threshold=100",
]


class Seen(Callback):
    """Takes notes of a run."""

    def __init__(self):
        self.sanity = self.validations = 0
        self.inference = self.anomaly = False
        self.first = []

    def on_train_start(self, trainer, pl_module):
        self.first = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_batch_end(self, *args):
        self.anomaly = torch.is_anomaly_enabled()

    def on_validation_batch_end(self, trainer, *args):
        self.sanity += trainer.sanity_checking
        self.inference = torch.is_inference_mode_enabled()

    def on_validation_end(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking


class Outcome:
    """What a run with some flags came to."""

    def __init__(self, *flags, subcommand="fit"):
        self.seen = Seen()
        self.cli = CLI([subcommand, *FLAGS, *flags], [self.seen])
        self.trainer, self.model, self.folder = self.cli.trainer, self.cli.model, self.cli.folder
        self.steps, self.metrics = self.trainer.global_step, self.trainer.callback_metrics

    @property
    def epochs(self):
        return [row["epoch"] for row in self.rows]

    @property
    def rows(self):
        (report,) = (callback for callback in self.trainer.callbacks if isinstance(callback, RunReport))
        return report.rows

    @property
    def moves(self):
        pairs = zip(self.seen.first, self.model.parameters(), strict=True)
        return torch.cat([(after.detach() - before).flatten() for before, after in pairs])

    def table(self, name):
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))


def plain():
    return Outcome("--trainer.max_epochs=2")


TABLE = {
    "accelerator": (["cpu"], lambda run, said: run.trainer.strategy.root_device.type == "cpu"),
    "accumulate_grad_batches": ([2], lambda run, said: run.steps == 4),
    "barebones": (["true"], lambda run, said: run.steps == 8 and not list(run.folder.rglob("*.ckpt"))),
    "benchmark": (["true"], lambda run, said: torch.backends.cudnn.benchmark),
    "check_val_every_n_epoch": (
        [2, "--trainer.max_epochs=4"],
        lambda run, said: [row["epoch"] for row in run.rows if "val_loss" in row] == [2, 4] and run.epochs[-1] == 4,
    ),
    "default_root_dir": (["here"], lambda run, said: list(Path("here").rglob("last.ckpt"))),
    "detect_anomaly": (["true"], lambda run, said: run.seen.anomaly),
    "deterministic": (["true"], lambda run, said: torch.are_deterministic_algorithms_enabled()),
    "enable_autolog_hparams": (["false"], lambda run, said: "lr" not in (run.folder / "hparams.yaml").read_text()),
    "enable_checkpointing": (["false"], lambda run, said: run.steps == 8 and not list(run.folder.rglob("*.ckpt"))),
    "enable_model_summary": (["true"], lambda run, said: "Network: 8 selu" in said),
    "enable_progress_bar": (["true"], lambda run, said: isinstance(run.trainer.progress_bar_callback, RunProgressBar)),
    "fast_dev_run": (["true"], lambda run, said: run.steps == 1 and not run.folder.exists()),
    "gradient_clip_algorithm": (
        ["value", "--trainer.gradient_clip_val=0.001"],
        lambda run, said: run.moves.abs().max() <= 8 * LR * 0.001 * 1.001 < run.moves.norm(),
    ),
    "gradient_clip_val": ([0.01], lambda run, said: 0 < run.moves.norm() <= 8 * LR * 0.01 * 1.001),
    "inference_mode": (["false"], lambda run, said: run.seen.validations and not run.seen.inference),
    "limit_train_batches": ([3], lambda run, said: run.steps == 3),
    "limit_val_batches": ([0], lambda run, said: "val_loss" not in run.metrics and run.epochs == [1]),
    "log_every_n_steps": (
        [1],
        lambda run, said: sum(bool(row["train_step_loss"]) for row in run.table("metrics.csv")) == 8,
    ),
    "max_epochs": ([3], lambda run, said: run.epochs == [1, 2, 3]),
    "max_steps": ([5], lambda run, said: run.steps == 5),
    "max_time": (["00:00:00:00"], lambda run, said: run.steps == 0),
    "min_epochs": ([3, *STOPPER], lambda run, said: run.epochs == [1, 2, 3]),
    "min_steps": ([12, *STOPPER], lambda run, said: run.steps == 12),
    "num_sanity_val_steps": ([0], lambda run, said: run.seen.sanity == 0),
    "plugins": (
        ["lightning.pytorch.plugins.io.AsyncCheckpointIO"],
        lambda run, said: (
            isinstance(run.trainer.strategy.checkpoint_io, AsyncCheckpointIO) and list(run.folder.rglob("last.ckpt"))
        ),
    ),
    "precision": (["64-true"], lambda run, said: run.model.network.output.weight.dtype == torch.float64),
    "profiler": (["simple"], lambda run, said: "run_training_epoch" in run.trainer.profiler.summary()),
    "reload_dataloaders_every_n_epochs": (
        [1, "--trainer.max_epochs=2"],
        lambda run, said: torch.equal(run.moves, plain().moves),
    ),
    "val_check_interval": ([2], lambda run, said: run.seen.validations == 4),
}
#: Options that are refused, each with a value and the message.
REFUSED = {
    "model_registry": ("mine", "--trainer.model_registry is not supported"),
    "overfit_batches": ("2", "use --trainer.limit_train_batches"),
}
#: Options that are tested elsewhere, or that act only where no test runs.
ELSEWHERE = {
    "callbacks": "tests/training/test_callbacks_of_lightning.py",
    "devices": "test_processes_that_are_spawned, test_two_processes_train_as_one",
    "limit_predict_batches": "test_limits_of_evaluations",
    "limit_test_batches": "test_limits_of_evaluations",
    "logger": "tests/callbacks/test_run_folder.py",
    "num_nodes": "several machines",
    "strategy": "test_processes_that_are_spawned, test_two_processes_train_as_one",
    "sync_batchnorm": "several GPUs",
    "use_distributed_sampler": "several devices",
}


def test_every_option_is_in_one_table():
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    tables = [set(TABLE), set(REFUSED), set(ELSEWHERE)]
    assert set.union(*tables) == options
    assert sum(map(len, tables)) == len(options)


@pytest.fixture
def _unchanged_switches():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("undrawn", "_unchanged_switches")
@pytest.mark.parametrize("option", TABLE)
def test_an_option_acts(capfd, option):
    (value, *more), is_seen = TABLE[option]
    first = [] if any("max_epochs" in flag for flag in more) or option == "max_epochs" else ["--trainer.max_epochs=1"]
    run = Outcome(*first, *more, f"--trainer.{option}={value}")
    printed = capfd.readouterr()
    assert is_seen(run, printed.out + printed.err)


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_is_refused(fail, option):
    value, message = REFUSED[option]
    assert message in fail("fit", *FLAGS, f"--trainer.{option}={value}")
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("undrawn")
def test_limits_of_evaluations():
    run = Outcome("--trainer.max_epochs=1")
    last = str(run.folder / "checkpoints" / "last.ckpt")
    size = ["--data.eval_batch_size=4", "--ckpt_path", last]
    whole = Outcome(*size, subcommand="test").table("evaluation.csv")[0]["images"]
    part = Outcome(*size, "--trainer.limit_test_batches=1", subcommand="test").table("evaluation.csv")[0]["images"]
    assert int(part) < int(whole)
    predicted = Outcome(*size, "--trainer.limit_predict_batches=1", subcommand="predict").table("predictions.csv")
    assert len(predicted) == int(part)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_are_spawned(tmp_path, strategy):
    flags = ["--trainer.max_epochs=1", "--trainer.devices=2", f"--trainer.strategy={strategy}"]
    command = [sys.executable, "-m", "cifar_lightning", "fit", *FLAGS, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "runs" / "default").iterdir()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert (folder / "config.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "received"),
    [
        (["--trainer.max_epochs=0"], "got max_epochs 0, max_steps -1, limit_train_batches 1.0"),
        (["--trainer.limit_train_batches=0.001"], "got max_epochs 100, max_steps -1, limit_train_batches 0.001"),
        (["--trainer.max_epochs=-1"], "got max_epochs -1, max_steps -1"),
    ],
)
@pytest.mark.parametrize("schedule", ["OneCycle", "Cosine"])
def test_a_schedule_without_a_length_is_refused_with_what_was_given(fail, schedule, flags, received):
    message = fail("fit", *FLAGS, f"--model.schedule={schedule}", *flags)
    assert f"{schedule} needs to know the length of the run: expected at least one optimizer step" in message
    assert received in message


@pytest.mark.usefixtures("undrawn")
def test_a_schedule_by_a_metric_goes_by_the_epochs_that_have_it():
    flags = [
        "--model.schedule=Performance",
        "--model.schedule.patience=0",
        "--trainer.max_epochs=4",
        "--model.schedule.metric=val_accuracy",
    ]
    run = Outcome(*flags, "--trainer.check_val_every_n_epoch=2", "--model.lr=1e-7")
    assert [row["lr"] for row in run.rows] == pytest.approx([1e-7, 1e-7, 1e-7, 0.5e-7])


def test_a_schedule_by_a_metric_without_a_validation_is_refused(fail):
    message = fail("fit", *FLAGS, "--model.schedule=Performance", "--trainer.limit_val_batches=0")
    assert "the schedule Performance follows val_loss: expected a run with validations" in message
