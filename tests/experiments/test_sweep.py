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
    assert "2 networks as one. Training steps: plain, 1 thread (compiling may take" in said
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
    "flag",
    [
        "gradient_clip_val=1",
        "accumulate_grad_batches=2",
        "max_steps=5",
        "limit_val_batches=2",
        "fast_dev_run=true",
        "fast_dev_run=3",
        "max_time=00:00:01:00",
        "logger=false",
        "enable_checkpointing=false",
        "detect_anomaly=true",
        "profiler=simple",
    ],
)
def test_flags_that_would_not_act_are_refused(fail, flag):
    message = fail(
        "fit", *FLAGS, f"--trainer.{flag}", "--trainer.callbacks+=Sweep", "--trainer.callbacks.vary={lr: [1]}"
    )
    assert f"--trainer.{flag.partition('=')[0]} is not for a sweep: expected" in message


def test_another_logger_is_refused(fail):
    logger = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: logs}}"
    message = fail("fit", *FLAGS, logger, "--trainer.callbacks+=Sweep", "--trainer.callbacks.vary={lr: [1]}")
    assert "--trainer.logger is not for a sweep: expected no such option" in message
    assert "received CSVLogger" in message


@pytest.mark.parametrize(
    "flags",
    [
        ["EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
        ["ModelCheckpoint"],
        ["SignalPicture"],
        ["LearningRateMonitor"],
    ],
)
def test_other_callbacks_are_refused(fail, flags):
    name, *more = flags
    message = fail(
        "fit", *FLAGS, f"--trainer.callbacks+={name}", *more,
        "--trainer.callbacks+=Sweep", "--trainer.callbacks.vary={lr: [1]}",
    )  # fmt: skip
    assert f"{name} is not for a sweep, whose networks it would not see" in message


def test_the_callbacks_of_a_config_can_be_taken_away(run, tmp_path):
    config = f"--config={ROOT}/configs/selu.yaml"
    flags = [config, "--trainer.callbacks=null", "--trainer.max_epochs=1"]
    said, _ = sweep(run, tmp_path, "{lr: [0.001]}", *flags)
    assert "best so far: lr=0.001" in said  # with selu.yaml's early stopping the sweep would be refused


def test_a_copy_that_diverges_is_not_the_best(run, tmp_path):
    said, _ = sweep(run, tmp_path, "{lr: [1000000.0, 0.01]}", "--model.schedule=Constant")
    assert "best so far: lr=0.01" in said
    assert "best so far: lr=1000000" not in said


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
