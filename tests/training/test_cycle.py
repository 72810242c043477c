import csv
from pathlib import Path

import pytest
import torch
from conftest import ACCELERATOR, ROOT, SMALL, rates
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from cifar_lightning import CIFAR10DataModule, MLPClassifier, OneCycle

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULES = {
    "OneCycle": [],
    "Power": ["--model.schedule.s=5"],
    "Exponential": ["--model.schedule.by=step"],
    "PiecewiseConstant": ["--model.schedule.epochs=[1]", "--model.schedule.factors=[1.0,0.3]"],
    # At this rate no prediction changes.
    "Performance": ["--model.schedule.patience=0", "--model.schedule.metric=val_accuracy", "--model.lr=1e-7"],
    "Cosine": ["--model.schedule.warmup=0.2"],
}


def lrs(path):
    """The logged rate of each step."""
    with path.open() as file:
        return {int(row["step"]): row["lr"] for row in csv.DictReader(file) if row["lr"]}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_mid_epoch_resume_restores_every_schedule(run, name):
    flags = [*SMALL, "--data.batch_size=16", "--model.hidden_sizes=2x10", "--model.lr=0.01"]
    flags += ["--trainer.max_epochs=4", "--trainer.log_every_n_steps=1", f"--model.schedule={name}", *SCHEDULES[name]]
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]
    run("fit", *flags, *every, "--trainer.default_root_dir=whole")
    middle = next(Path("whole").rglob("stepstep=35*.ckpt"))
    run("fit", *flags, "--trainer.default_root_dir=resumed", f"--ckpt_path={middle}")
    whole, resumed = (lrs(next(Path(root).rglob("metrics.csv"))) for root in ("whole", "resumed"))
    assert resumed == {step: lr for step, lr in whole.items() if step >= 35}
    assert len(set(whole.values())) > 1


def finished_cycle(run):
    flags = [f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--model.hidden_sizes=2x10", "--data.batch_size=16"]
    run("fit", *flags, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1")
    return [*flags, "--trainer.log_every_n_steps=1", f"--ckpt_path={next(Path().rglob('last.ckpt'))}"]


def newest(name):
    return max(Path().rglob(name), key=lambda path: path.stat().st_mtime)


def test_resuming_a_finished_cycle_with_more_epochs_names_the_ways_out(run, fail):
    message = fail("fit", *finished_cycle(run), "--trainer.max_epochs=4")
    assert "length does not match its OneCycle schedule: expected 30 optimizer steps" in message
    assert "got 60" in message
    assert "--cycle.resume finish" in message
    assert "--cycle.resume new" in message


def test_a_new_cycle_from_the_old_weights(run):
    flags = finished_cycle(run)
    first = lrs(newest("metrics.csv"))
    run("fit", *flags, "--trainer.max_epochs=4", "--cycle.resume=new")
    assert lrs(newest("metrics.csv")) == {step + 30: lr for step, lr in first.items()}
    assert torch.load(newest("last.ckpt"), weights_only=True)["global_step"] == 60


def test_a_new_cycle_is_restored_when_it_is_resumed_itself(run):
    flags = [*SMALL, "--model.hidden_sizes=2x10", "--data.batch_size=16", "--model.schedule=Cosine"]
    flags += ["--trainer.log_every_n_steps=1", "--model.lr=0.1", "--config=none.yaml"]
    Path("none.yaml").write_text("{}")
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]
    run("fit", *flags, "--trainer.max_epochs=2")
    first = f"--ckpt_path={next(Path().rglob('last.ckpt'))}"
    run("fit", *flags, *every, "--trainer.max_epochs=5", "--cycle.resume=new", first)
    whole = newest("metrics.csv")
    middle = f"--ckpt_path={next(Path().rglob('stepstep=60*.ckpt'))}"
    run("fit", *flags, "--trainer.max_epochs=5", middle)
    assert lrs(newest("metrics.csv")) == {step: lr for step, lr in lrs(whole).items() if step >= 60}


def test_finishing_the_old_cycle(run):
    flags = finished_cycle(run)
    run("fit", *flags, "--trainer.max_epochs=4", "--cycle.resume=finish")
    assert torch.load(next(Path().rglob("last.ckpt")), weights_only=True)["global_step"] == 30


def test_a_second_fit_of_a_trainer_has_a_cycle_for_the_steps_that_are_left():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20, batch_size=8)  # 5 steps an epoch
    module = MLPClassifier(hidden_sizes=[4], optimizer="SGD", schedule="OneCycle", lr=0.1)
    seen = []
    note = lambda trainer, *_: seen.append(trainer.optimizers[0].param_groups[0]["lr"])  # noqa: E731
    watch = LambdaCallback(on_train_batch_start=note)
    trainer = Trainer(**ACCELERATOR, logger=False, enable_checkpointing=False, max_epochs=2, callbacks=[watch])
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data)
    assert seen == rates(OneCycle(), 10, 0.1)[:10] * 2
