import csv

import pytest
from conftest import ROOT, SMALL

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
RATES = "{model.lr: [0.002, 0.01]}"


def rows(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [float(row[name]) for row in rows(folder) if row.get(name)]


def table(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(capfd, tmp_path):
    """Run a sweep; return what it printed, and its folder."""
    from cifar_lightning.experiments.sweep.command import main

    def sweep(vary, *flags, root=tmp_path / "sweep"):
        capfd.readouterr()
        main([*([f"--vary={vary}"] if vary else []), *FLAGS, *flags, f"--trainer.default_root_dir={root}"])
        printed = capfd.readouterr()
        return printed.out + printed.err, max(root.glob("*/sweep_*"), key=lambda folder: folder.stat().st_ctime)

    return sweep


@pytest.fixture
def fail(capfd):
    """Run a sweep on a user's mistake, and return the message that it must end with."""
    from cifar_lightning.experiments.sweep.command import main

    def fail(*args):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        assert stop.value.code == 2
        printed = capfd.readouterr().err
        assert "Traceback" not in printed
        assert printed.count("error:") == 1
        return printed[printed.index("error:") :]

    return fail


PARITY = [
    (RATES, "lr=0.01", ["--model.lr=0.01"]),
    ("{seed_everything: [1, 2, 3]}", "seed_everything=2", ["--seed_everything=2"]),
    (
        "{seed_everything: [1, 2], model.lr: [0.01, 0.1]}",
        "seed_everything=2,lr=0.01",
        ["--seed_everything=2", "--model.lr=0.01"],
    ),
    (
        "{model.optimizer.momentum: [0, 0.9]}",
        "momentum=0.9",
        ["--model.optimizer=SGD", "--model.optimizer.momentum=0.9"],
    ),
    (
        "{optimizer: {sgd: {model.optimizer: SGD}, nadam: {model.optimizer: NAdam, model.lr: 1e-4}}}",
        "nadam",
        ["--model.optimizer=NAdam", "--model.lr=1e-4"],
    ),
    (
        "{model.schedule.div_factor: [5, 20]}",
        "div_factor=20",
        ["--model.schedule=OneCycle", "--model.schedule.div_factor=20"],
    ),
    (
        "{model.schedule.cycle_momentum: [false, true]}",
        "cycle_momentum=true",
        ["--model.schedule=OneCycle", "--model.schedule.cycle_momentum=true"],
    ),
    ("{model.schedule: [OneCycle, Exponential]}", "schedule=Exponential", ["--model.schedule=Exponential"]),
    ("{model.schedule: [OneCycle, Performance]}", "schedule=Performance", ["--model.schedule=Performance"]),
    ("{model.l2: [0, 0.01]}", "l2=0.01", ["--model.l2=0.01"]),
    ("{model.l1: [1e-3, 1e-4]}", "l1=0.001", ["--model.l1=1e-3"]),
    ("{model.max_norm: [0.5, 1]}", "max_norm=0.5", ["--model.max_norm=0.5"]),
    ("{model.init: [lecun_normal, he_normal]}", "init=he_normal", ["--model.init=he_normal"]),
]


@pytest.mark.parametrize(("vary", "copy", "alone"), PARITY, ids=[copy for _, copy, _ in PARITY])
def test_a_copys_steps_are_those_of_its_own_run(sweep, run, tmp_path, undrawn, vary, copy, alone):
    _, folder = sweep(vary)
    run("fit", *FLAGS, *alone, f"--trainer.default_root_dir={tmp_path / 'alone'}")
    for name, count in (("train_step_loss", 24), ("lr", 24), ("train_loss", 2), ("val_loss", 2), ("val_accuracy", 2)):
        ours, theirs = column(folder / copy, name), column(tmp_path / "alone", name)
        assert len(theirs) == count
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert column(folder / copy, "step") == column(tmp_path / "alone", "step")
