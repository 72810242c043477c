import csv
import random
import re
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACCELERATOR, ROOT, SMALL
from lightning.pytorch import Trainer

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.cli.main import CLI
from cifar_lightning.training.random_state import collect_generators, restore_generators

pytestmark = pytest.mark.usefixtures("undrawn")

ONE_CYCLE = [
    f"--config={ROOT}/configs/one_cycle.yaml",
    *SMALL,
    "--data.batch_size=16",
    "--model.hidden_sizes=3x20",
    "--model.dropout_position=all",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1",
]
EVERY_4_STEPS = [
    "--trainer.callbacks+=ModelCheckpoint",
    "--trainer.callbacks.every_n_train_steps=4",
    "--trainer.callbacks.save_top_k=-1",
    "--trainer.callbacks.filename=step{step}",
]


def final(folder):
    return torch.load(next(folder.rglob("last.ckpt")), weights_only=True)


def rows(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_random_generators_come_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = collect_generators()
    drawn = draw()
    assert draw() != drawn
    restore_generators(state)
    assert draw() == drawn


@pytest.mark.parametrize("model", [[], ["--model.normalization=batch", "--model.optimizer=NAdam"]])
@pytest.mark.filterwarnings("ignore:this SELU network")
def test_a_mid_epoch_resume_is_bitwise_equal_to_the_uninterrupted_run(run, tmp_path, model):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("fit", *ONE_CYCLE, *EVERY_4_STEPS, *model, f"--trainer.default_root_dir={whole}")
    middle = next(whole.rglob("stepstep=20*.ckpt"))  # epoch 1, after 5 of 15 batches
    assert torch.load(middle, weights_only=True)["epoch"] == 1
    torch.rand(1000)
    run("fit", *ONE_CYCLE, *model, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={middle}")
    expected, received = final(whole), final(resumed)
    assert received["global_step"] == expected["global_step"] == 45
    for name, value in expected["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(received["state_dict"][name], value), name
    assert torch.equal(received["random_generators"][0]["torch"], expected["random_generators"][0]["torch"])
    assert received["lr_schedulers"] == expected["lr_schedulers"]
    after = [row for row in rows(whole) if int(row["step"]) >= 20]
    for ours, theirs in zip(rows(resumed), after, strict=True):  # the interrupted epoch's metrics too
        mean = "train_loss"  # whose terms may be added in another order
        assert float(ours.pop(mean) or 0) == pytest.approx(float(theirs.pop(mean) or 0), rel=1e-5)
        assert ours == theirs


def test_a_resume_keeps_the_order_whatever_the_seed(run, tmp_path):
    flags = [*ONE_CYCLE, "--model.schedule=Constant", f"--trainer.default_root_dir={tmp_path}"]
    run("fit", *flags, "--seed_everything=7", "--trainer.max_epochs=1")
    last = next(tmp_path.rglob("last.ckpt"))
    results = []
    for seed in (7, 42):
        run("fit", *flags, f"--seed_everything={seed}", "--trainer.max_epochs=2", f"--ckpt_path={last}")
        newest = max(tmp_path.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        results.append(torch.load(newest, weights_only=True)["state_dict"]["network.output.weight"])
    assert torch.equal(*results)


def test_a_resume_takes_the_config_of_its_run(run, tmp_path):
    root = f"--trainer.default_root_dir={tmp_path}"
    run("fit", *ONE_CYCLE, "--model.schedule=Constant", "--trainer.max_steps=20", root)
    last = next(tmp_path.rglob("last.ckpt"))
    run("fit", "--ckpt_path", str(last), "--trainer.max_steps=30")
    resumed = max(tmp_path.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert resumed != last
    assert resumed.parents[2].name == "one_cycle"
    assert torch.load(resumed, weights_only=True)["global_step"] == 30


def test_a_resume_takes_the_best_weights_along(run, tmp_path):
    # Uphill, so that each epoch is worse than the one before.
    flags = [
        *ONE_CYCLE,
        "--model.schedule=Constant",
        "--model.optimizer.maximize=true",
        "--model.lr=0.001",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    run("fit", *flags, "--trainer.max_epochs=1")
    first = next(tmp_path.rglob("best.ckpt"))
    run("fit", *flags, "--trainer.max_epochs=3", f"--ckpt_path={first.with_name('last.ckpt')}")
    second = max(tmp_path.rglob("best.ckpt"), key=lambda path: path.stat().st_mtime)
    assert second != first
    assert second.read_bytes() == first.read_bytes()
    state = torch.load(second.with_name("last.ckpt"), weights_only=True)["callbacks"]
    best = next(value for key, value in state.items() if key.startswith("BestCheckpoint"))
    assert best["best_model_path"] == str(second)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--model.lr=0.1", "model.lr"),
        ("--model.optimizer=Adam", "model.optimizer"),
        ("--data.batch_size=8", "data.batch_size"),
        ("--data.val_split=last", "data.val_split"),
        ("--model.hidden_sizes=4x20", "model.hidden_sizes"),
    ],
)
def test_a_resume_refuses_what_contradicts_its_checkpoint(run, fail, tmp_path, flag, name):
    run("fit", *ONE_CYCLE, "--trainer.max_steps=2")
    message = fail("fit", *ONE_CYCLE, "--ckpt_path=last", flag)
    assert f"--{name} contradicts the checkpoint: expected" in message
    assert "got" in message


def test_a_resume_that_finds_nothing_fails(fail):
    assert "no last checkpoint: expected a run of" in fail("fit", *ONE_CYCLE, "--ckpt_path=last")
    assert "no such checkpoint: expected a file, best or last; got 'x.ckpt'" in fail(
        "fit", *ONE_CYCLE, "--ckpt_path=x.ckpt"
    )


def test_the_report_of_a_resumed_run_has_every_epoch(run):
    run("fit", *SMALL, "--model.hidden_sizes=2x10", "--trainer.max_epochs=2")
    for _ in range(2):  # once with an epoch left to train, and once with none
        last = max(Path().rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        trainer = CLI(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=3"]).trainer
        (report,) = (callback for callback in trainer.callbacks if isinstance(callback, RunReport))
        assert [row["epoch"] for row in report.rows] == [1, 2, 3]
        assert all(min(row["train_loss"], row["val_loss"]) > 0 and row["lr"] == 1e-3 for row in report.rows)


def test_each_epoch_has_one_row_whatever_the_validations(run):
    # 8 batches an epoch; 20 steps end within the third.
    flags = [*SMALL, "--model.hidden_sizes=2x10", "--trainer.val_check_interval=3"]
    run("fit", *flags, "--trainer.max_steps=20", "--trainer.default_root_dir=first")
    last = next(Path("first").rglob("last.ckpt"))
    said = run("fit", f"--ckpt_path={last}", "--trainer.max_steps=40", "--trainer.default_root_dir=second")
    whole = run("fit", *flags, "--trainer.max_steps=40", "--trainer.default_root_dir=whole")

    def printed(text):
        return [line.partition("lr")[0] for line in text.splitlines() if line.startswith("epoch ")]

    assert len(printed(whole)) == 5
    assert printed(said) == printed(whole)[2:]


def test_epochs_without_validation_have_no_validation_metrics():
    report = RunReport()
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20)
    flags = {"logger": False, "enable_checkpointing": False, "check_val_every_n_epoch": 2, "callbacks": [report]}
    Trainer(**ACCELERATOR, max_epochs=5, **flags).fit(MLPClassifier(hidden_sizes=[4]), data)
    assert ["val_loss" in row for row in report.rows] == [False, True, False, True, False]


@pytest.mark.parametrize(("losses", "best"), [([nan, 2.0, 1.0], 3), ([2.0, nan, nan], 1), ([nan, nan, 3.0], 3)])
def test_the_best_epoch_has_a_loss(losses, best, capsys, tmp_path):
    report = RunReport()
    report.rows = [
        {"epoch": index + 1.0, "seconds": 1.0, "lr": 0.1, "val_loss": loss, "val_accuracy": 0.5}
        for index, loss in enumerate(losses)
    ]
    report.on_fit_end(Trainer(**ACCELERATOR, logger=False, default_root_dir=tmp_path), MLPClassifier())
    shown = capsys.readouterr().out
    assert re.search(rf"best .*│ {best} ", shown)


def test_the_last_checkpoint_is_that_of_the_last_epoch(run):
    # At this rate no epoch is better than the first.
    run("fit", *SMALL, "--model.hidden_sizes=2x10", "--model.lr=1e-30", "--trainer.max_epochs=8")
    best, last = (torch.load(next(Path().rglob(f"{name}.ckpt")), weights_only=True) for name in ("best", "last"))
    assert best["epoch"] < 7  # or else this would show nothing
    assert last["epoch"] == 7
    (state,) = (state for name, state in last["callbacks"].items() if name.startswith("BestCheckpoint"))
    report = last["callbacks"]["RunReport"]
    assert [row["epoch"] for row in report["rows"]] == list(range(1, 9))
    assert state["best_model_score"] == min(row["val_loss"] for row in report["rows"])


def test_a_training_that_stopped_early_does_not_go_on(run):
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"]
    flags = [*SMALL, "--model.hidden_sizes=2x10", "--model.lr=0.1", "--trainer.max_epochs=30"]
    run("fit", *flags, *stopping, "--trainer.callbacks.patience=2")
    last = next(Path().rglob("last.ckpt"))
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert epoch < 29
    trainer = CLI(["fit", f"--ckpt_path={last}"]).trainer
    (report,) = (callback for callback in trainer.callbacks if isinstance(callback, RunReport))
    assert len(report.rows) == epoch + 1
