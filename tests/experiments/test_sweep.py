import csv

import pytest
import torch
from conftest import ROOT, SMALL

from cifar_lightning import MLPClassifier

FLAGS = [
    f"--config={ROOT}/configs/one_cycle.yaml",
    *SMALL,
    "--data.batch_size=20",  # 12 batches an epoch
    "--model.hidden_sizes=3x20",
    "--model.dropout=none",
    "--model.lr=0.005",  # at which a rounding stays one
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
]


def rows(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [float(row[name]) for row in rows(folder) if row.get(name)]


def sweep(run, root, vary, *flags):
    said = run("fit", *FLAGS, *flags, f"--trainer.default_root_dir={root}", "--trainer.callbacks+=Sweep",
               f"--trainer.callbacks.vary={vary}")  # fmt: skip
    return said, next(root.rglob("sweep.csv")).parent


@pytest.mark.parametrize(
    ("vary", "copy", "alone"),
    [
        (
            "{schedule.cycle_momentum: [0, 1]}",
            "schedule.cycle_momentum=1",
            ["--model.schedule=OneCycle", "--model.schedule.cycle_momentum=true"],
        ),
        ("{lr: [0.002, 0.01]}", "lr=0.01", ["--model.lr=0.01"]),
        ("{seed: [1, 2, 3]}", "seed=2", ["--seed_everything=2"]),
        ("{seed: [1, 2], lr: [0.01, 0.1]}", "seed=2_lr=0.01", ["--seed_everything=2", "--model.lr=0.01"]),
        (
            "{optimizer.momentum: [0, 0.9]}",
            "optimizer.momentum=0.9",
            ["--model.optimizer=SGD", "--model.optimizer.momentum=0.9"],
        ),
        (
            "{schedule.div_factor: [5, 20]}",
            "schedule.div_factor=20",
            ["--model.schedule=OneCycle", "--model.schedule.div_factor=20"],
        ),
    ],
)
def test_a_copys_steps_are_those_of_its_own_run(run, tmp_path, vary, copy, alone):
    _, folder = sweep(run, tmp_path / "sweep", vary)
    run("fit", *FLAGS, *alone, f"--trainer.default_root_dir={tmp_path / 'alone'}")
    for name, count in (("train_step_loss", 24), ("lr", 24), ("train_loss", 2), ("val_loss", 2), ("val_accuracy", 2)):
        ours, theirs = column(folder / copy, name)[:count], column(tmp_path / "alone", name)
        assert len(theirs) == count
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("schedule", ["Constant", "Performance", "Exponential", "PiecewiseConstant"])
@pytest.mark.filterwarnings("ignore")
def test_every_schedule(run, tmp_path, schedule):
    flags = [f"--model.schedule={schedule}", "--model.optimizer=NAdam", "--model.normalization=batch"]
    _, folder = sweep(run, tmp_path / "sweep", "{lr: [0.001, 0.003]}", *flags)
    run("fit", *FLAGS, *flags, "--model.lr=0.003", f"--trainer.default_root_dir={tmp_path / 'alone'}")
    for name in ("train_step_loss", "val_loss"):
        assert column(folder / "lr=0.003", name) == pytest.approx(column(tmp_path / "alone", name), rel=1e-4)


def test_leaves_logs_curves_and_checkpoints_of_each(run, tmp_path):
    said, folder = sweep(run, tmp_path, "{lr: [0.01, 0.1]}")
    assert "Sweep on synthetic" in said
    assert "Training on" not in said  # there is no other training
    assert said.count("Training steps") == 1
    assert "2 networks as one. Training steps: plain, 1 thread (compiling does not pay" in said
    with (folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["lr"] for row in table] == ["0.01", "0.1"]
    for row in table:
        place = folder / row["folder"]
        assert (place / "learning_curves.png").stat().st_size > 10_000
        assert list(place.glob("events*"))
        best = place / "checkpoints" / "best.ckpt"
        assert best.stat().st_size < 2 * 300_000  # not the whole stack
        model = MLPClassifier.load_from_checkpoint(best, weights_only=True)
        assert model.hparams["lr"] == float(row["lr"])
        assert min(column(place, "val_loss")) == pytest.approx(float(row["val_loss"]))
        said = run("test", f"--ckpt_path={best}", *SMALL[:3], f"--trainer.default_root_dir={tmp_path}/test",
                   "--trainer.enable_progress_bar=false")  # fmt: skip
        assert "accuracy" in said
    assert torch.load(best, weights_only=True)["classes"]


@pytest.mark.parametrize(
    "flag", ["gradient_clip_val=1", "accumulate_grad_batches=2", "max_steps=5", "limit_val_batches=2"]
)
def test_flags_that_would_not_act_are_refused(fail, flag):
    message = fail(
        "fit", *FLAGS, f"--trainer.{flag}", "--trainer.callbacks+=Sweep", "--trainer.callbacks.vary={lr: [1]}"
    )
    assert f"--trainer.{flag.partition('=')[0]} is not for a sweep: expected" in message


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("{}", "nothing to sweep: expected values by name"),
        ("{lr: []}", "nothing to sweep: expected values by name"),
        ("{rate: [1]}", "unknown name to vary: expected one of lr, seed, optimizer."),
        ("{optimizer.momentun: [1]}", "(did you mean 'optimizer.momentum'"),
        ("{lr: [-1]}", "lr out of range: expected a positive number, received -1"),
    ],
)
def test_mistakes(fail, vary, message):
    assert message in fail("fit", *FLAGS, "--trainer.callbacks+=Sweep", f"--trainer.callbacks.vary={vary}")
