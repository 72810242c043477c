import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lightning import MLPClassifier
from cifar_lightning.callbacks.progress_line import ProgressLine
from cifar_lightning.experiments.grid import read_grid
from cifar_lightning.experiments.results import by_name
from cifar_lightning.experiments.sweep.check import refuse_what_has_no_meaning
from cifar_lightning.experiments.sweep.command import main
from cifar_lightning.experiments.sweep.report import make_results
from cifar_lightning.training.copies import Copy

FLAGS = [
    f"--config={ROOT}/configs/one_cycle.yaml",
    *SMALL,
    "--data.batch_size=20",  # 12 batches an epoch
    "--model.hidden_sizes=3x20",
    "--model.dropout=none",
    "--config={model: {lr: 0.005}}",  # at which a rounding stays one
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
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(capfd, tmp_path):
    """Run a sweep; return what it printed, and its folder."""

    def sweep(vary, *flags, root=tmp_path / "sweep"):
        capfd.readouterr()
        main([*([f"--vary={vary}"] if vary else []), *FLAGS, *flags, f"--trainer.default_root_dir={root}"])
        printed = capfd.readouterr()
        return printed.out + printed.err, max(root.glob("*/sweep_*"), key=lambda folder: folder.stat().st_ctime)

    return sweep


@pytest.fixture
def fail(capfd):
    """Run a sweep on a user's mistake, and return the message that it must end with."""

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


# (In bfloat16, a rounding of the gradients' last bit becomes one of 1/256 in the updates.)
MUON = ["--model.optimizer=MuonAdamW", "--model.optimizer.precision=float32", "--config={model: {lr: 1e-3}}"]


@pytest.mark.parametrize(
    ("vary", "copy", "alone", "flags"),
    [
        ("{seed_everything: [1, 2]}", "seed_everything=2", ["--seed_everything=2"], []),
        ("{model.lr: [1e-4, 1e-3]}", "lr=0.001", ["--model.lr=1e-3"], ["--model.cutmix=1.0"]),
        (
            "{seed_everything: [1, 2], model.optimizer.momentum: [0.9, 0.95]}",
            "seed_everything=2,momentum=0.9",
            ["--seed_everything=2", "--model.optimizer.momentum=0.9"],
            ["--model.schedule=OneCycle", "--model.schedule.cycle_momentum=true"],
        ),
        (
            "{model.optimizer.weight_decay: [0, 0.3]}",
            "weight_decay=0.3",
            ["--model.optimizer.weight_decay=0.3"],
            ["--execution.compile=always", "--execution.steps=5", "--model.block=residual"],
        ),
    ],
    ids=["seeds", "rates and cutmix", "seeds and momentum", "compiled"],
)
def test_muon_in_a_stack(sweep, run, tmp_path, undrawn, uncompiled, vary, copy, alone, flags):
    _, folder = sweep(vary, *MUON, *flags)
    run("fit", *FLAGS, *MUON, *flags, *alone, f"--trainer.default_root_dir={tmp_path / 'alone'}")
    for name in ("train_step_loss", "lr", "train_loss", "val_loss"):
        assert column(folder / copy, name) == pytest.approx(column(tmp_path / "alone", name), rel=1e-5)


#: What a sweep does with a flag of the trainer: the flags, and how often a copy must have logged steps and validations.
TRAINER_FLAGS = [
    (["max_steps=5"], 5, 0),
    (["max_epochs=-1", "max_steps=30"], 30, 2),
    (["max_epochs=1", "min_epochs=1"], 12, 1),
    (["limit_train_batches=3"], 6, 2),
    (["limit_train_batches=0.5"], 12, 2),
    (["limit_val_batches=1"], 24, 2),
    (["val_check_interval=4"], 24, 6),
    (["check_val_every_n_epoch=2"], 24, 1),
    (["num_sanity_val_steps=0"], 24, 2),
    (["accumulate_grad_batches=5"], 6, 2),
    (["gradient_clip_val=0.3"], 24, 2),
    (["gradient_clip_val=0.01", "gradient_clip_algorithm=value"], 24, 2),
    (["accumulate_grad_batches=5", "gradient_clip_val=0.3"], 6, 2),
    (["log_every_n_steps=10"], 2, 2),
    (["precision=64-true"], 24, 2),
    (["profiler=simple"], 24, 2),
    (["detect_anomaly=true"], 24, 2),
    (["deterministic=true"], 24, 2),
    (["reload_dataloaders_every_n_epochs=1"], 24, 2),
    (["max_time=00:01:00:00"], 24, 2),
]


@pytest.mark.parametrize(
    ("flags", "steps", "validations"), TRAINER_FLAGS, ids=[" ".join(flags) for flags, *_ in TRAINER_FLAGS]
)
def test_trainer_flags_act_as_in_a_copys_own_run(sweep, run, tmp_path, undrawn, flags, steps, validations):
    flags = [f"--trainer.{flag}" for flag in flags]
    _, folder = sweep(RATES, *flags)
    run("fit", *FLAGS, *flags, "--model.lr=0.01", f"--trainer.default_root_dir={tmp_path / 'alone'}")
    for name, count in (("train_step_loss", steps), ("lr", steps), ("val_loss", validations)):
        ours, theirs = column(folder / "lr=0.01", name), column(tmp_path / "alone", name)
        assert len(theirs) == count
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name in ("step", "epoch"):
        assert column(folder / "lr=0.01", name) == column(tmp_path / "alone", name)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(sweep, run, tmp_path, undrawn, precision):
    flags = [f"--trainer.precision={precision}"]
    _, folder = sweep(RATES, *flags)
    run("fit", *FLAGS, *flags, "--model.lr=0.01", f"--trainer.default_root_dir={tmp_path / 'alone'}")
    ours, theirs = (column(place, "train_step_loss") for place in (folder / "lr=0.01", tmp_path / "alone"))
    assert ours[:5] == pytest.approx(theirs[:5], rel=0.02)  # 8 bits, in sums of another order
    model = MLPClassifier.load_from_checkpoint(folder / "lr=0.01/checkpoints/best.ckpt", weights_only=True)
    exact = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    saved = torch.load(folder / "lr=0.01/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert saved["network.output.weight"].dtype == exact
    assert model.hparams["lr"] == 0.01


REFUSED = [
    (["--trainer.devices=2", "--trainer.accelerator=cpu"], "--trainer.devices must be 1 in a sweep, since"),
    (["--trainer.num_nodes=2"], "--trainer.num_nodes must be 1 in a sweep"),
    (["--model.lr=0.5"], "--model.lr is varied and cannot be set as well, got 0.5"),
    (["--trainer.callbacks+=LRFinder"], "LRFinder does not work in a sweep: it finds one learning rate"),
    (
        ["--trainer.callbacks+=SignalPicture"],
        "SignalPicture does not work in a sweep: it plots the layers of one network",
    ),
    (["--trainer.callbacks+=SchedulePlot"], "SchedulePlot does not work in a sweep: it plots one schedule"),
    (["--trainer.callbacks+=FreezePretrained"], "FreezePretrained does not work in a sweep: it freezes layers"),
    (["--trainer.overfit_batches=2"], "use --trainer.limit_train_batches"),
    (["--model.optimizer=LBFGS"], "LBFGS does not work in a sweep"),
    (["--ckpt_path=best"], "a sweep has a best checkpoint for each network"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[flags[0] for flags, _ in REFUSED])
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_meaning_is_refused(fail, flags, message):
    assert message in fail(f"--vary={RATES}", *FLAGS, *flags)


def test_a_loss_scale_for_all_is_refused():
    trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(
        ValueError, match=r"--trainer.precision does not work in a sweep: expected 32-true .*got 16-mixed"
    ):
        refuse_what_has_no_meaning(trainer, [])


STOPPING = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"]


@pytest.mark.parametrize("flags", [[], ["--trainer.val_check_interval=5"]], ids=["an epoch", "within epochs"])
def test_each_copy_stops_where_its_own_run_does(sweep, run, tmp_path, undrawn, flags):
    flags += [*STOPPING, "--trainer.callbacks.patience=2", "--trainer.callbacks.min_delta=0.02"]
    flags += ["--trainer.max_epochs=5", "--model.schedule=Constant"]
    _, folder = sweep("{model.lr: [1e-6, 0.001, 0.003]}", *flags)
    ends = {}
    for rate in ("1e-06", "0.001", "0.003"):
        root = tmp_path / "alone" / rate
        run("fit", *FLAGS, *flags, f"--model.lr={rate}", f"--trainer.default_root_dir={root}")
        for name in ("val_loss", "train_loss", "train_step_loss"):
            assert column(folder / f"lr={rate}", name) == pytest.approx(column(root, name), rel=1e-3)
        ends[rate] = len(column(root, "train_step_loss"))
        for name in ("best", "last"):
            (alone,) = root.rglob(f"{name}.ckpt")
            ours, theirs = (
                torch.load(path, weights_only=True)["state_dict"]["network.output.weight"]
                for path in (folder / f"lr={rate}/checkpoints/{name}.ckpt", alone)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
    assert len(set(ends.values())) > 1  # or nothing is shown


AVERAGING = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
AVERAGING += ["--trainer.callbacks.update_every_n_steps=3"]
ONE_STOPS = [*STOPPING, "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=0.05"]


@pytest.mark.parametrize(
    "flags",
    [
        AVERAGING,
        [*AVERAGING, "--model.normalization=batch", "--trainer.val_check_interval=5"],
        [*AVERAGING, "--execution.compile=always", "--execution.steps=5", "--trainer.log_every_n_steps=6"],
        [*AVERAGING, "--trainer.callbacks.update_starting_at_step=15"],
        [*ONE_STOPS, *AVERAGING],
        [*ONE_STOPS, *AVERAGING, "--execution.compile=always", "--execution.steps=5"],
        [*ONE_STOPS, *AVERAGING, "--trainer.val_check_interval=5"],
        [
            *(*ONE_STOPS, "--trainer.callbacks.check_on_train_epoch_end=false"),
            *(*AVERAGING, "--trainer.callbacks.update_starting_at_epoch=0"),
        ],
        ["--trainer.callbacks+=WeightAveraging"],
    ],
    ids=["each epoch", "within", "compiled", "later", "stops", "stops compiled", "stops within", "by epoch", "mean"],
)
def test_weights_are_averaged_as_in_a_copys_own_run(sweep, run, tmp_path, undrawn, uncompiled, flags):
    flags = ["--trainer.max_epochs=4", "--model.schedule=Constant", *flags]
    _, folder = sweep("{model.lr: [1e-5, 0.003], seed_everything: [1, 2]}", *flags)
    lengths = set()
    for rate in ("1e-05", "0.003"):
        root, copy = tmp_path / rate, folder / f"lr={rate},seed_everything=2"
        run("fit", *FLAGS, *flags, f"--model.lr={rate}", "--seed_everything=2", f"--trainer.default_root_dir={root}")
        for name in ("train_loss", "val_loss"):
            assert column(copy, name) == pytest.approx(column(root, name), rel=1e-5)
        lengths.add(len(column(root, "train_loss")))
        # (Lightning saves the best after an epoch's own update of averages: it is not what was validated.)
        for name in ("last",) if "--trainer.callbacks.update_starting_at_epoch=0" in flags else ("best", "last"):
            paths = copy / f"checkpoints/{name}.ckpt", *root.rglob(f"{name}.ckpt")
            ours, theirs = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-5)
    assert (len(lengths) == 2) == ("--trainer.callbacks+=EarlyStopping" in flags)


def test_of_several_validations_in_an_epoch_the_best_counts(sweep, undrawn):
    flags = ["--model.optimizer=SGD", "--model.schedule=Constant", "--model.hidden_sizes=1x8"]
    said, folder = sweep("{model.lr: [0.2, 0.3]}", *flags, "--trainer.val_check_interval=3")  # the loss grows
    losses = [column(folder / row["folder"], "val_loss") for row in table(folder)]
    assert [min(each) < min(each[3::4]) for each in losses] == [True, True]  # or the last ones of each epoch would do
    assert [float(row["best_val_loss"]) for row in table(folder)] == pytest.approx([min(each) for each in losses])
    best = min(table(folder), key=lambda row: float(row["best_val_loss"]))
    assert f"next: cifar-lightning test --ckpt_path {folder / best['folder']}/" in said
    saved = torch.load(folder / best["folder"] / "checkpoints/best.ckpt", weights_only=True)
    assert saved["epoch"] + 1 == float(best["best_epoch"])


LONG = "{class_path: MuonAdamW, init_args: {weight_decay: 0.1, momentum: 0.95, ns_steps: 5, precision: float32}}"


@pytest.mark.parametrize(
    ("vary", "rows"),
    [
        ("{model.lr: [0.1, 0.2], seed_everything: [1, 2]}", ["lr=0.1", "lr=0.2"]),
        ("{seed_everything: [1, 2]}", ["all"]),
        (f"{{model.optimizer: [{LONG}, SGD], model.lr: [0.1, 0.2], seed_everything: [1, 2]}}", 4),  # a cut name
        (f"{{model.optimizer: [{LONG}, SGD], seed_everything: [1, 2], model.lr: [0.1, 0.2]}}", 4),
        ("{model.init: [a b, a_b], seed_everything: [1, 2]}", 2),  # whose names are the same
        ("{o: {a: {model.lr: 0.1}, b: {model.lr: 0.1}}}", ["a", "b"]),  # the same values, but no seeds
    ],
)
def test_networks_that_differ_only_in_the_seed_are_one_row(vary, rows):
    classifier = MLPClassifier(hidden_sizes=[4])
    points = read_grid(vary).points()
    copies = [Copy(point.name, classifier, point.values.get("seed_everything", 1), point.values) for point in points]
    groups = by_name(make_results(copies, "synthetic"))
    assert list(groups) == rows or len(groups) == rows
    for group in groups.values():
        assert [each.seed for each in group] == ([1, 2] if "seed" in vary else [1])
        assert len({str(each.values | {"seed_everything": 0}) for each in group}) == 1


def test_a_copy_that_diverges_is_not_the_best_and_disturbs_no_other(sweep, tmp_path, undrawn):
    flags = ["--model.schedule=Constant"]
    said, folder = sweep("{model.lr: [1e30, 0.01]}", *flags)
    _, alone = sweep("{model.lr: [0.01]}", *flags, root=tmp_path / "alone")
    assert "best so far: lr=0.01" in said
    assert "best so far: lr=1e+30" not in said
    assert not (folder / "lr=1e+30/checkpoints/best.ckpt").exists()
    assert (folder / "lr=1e+30/checkpoints/last.ckpt").exists()
    assert column(folder / "lr=0.01", "val_loss") == pytest.approx(column(alone / "lr=0.01", "val_loss"), rel=1e-6)
    assert table(folder)[0]["best_val_loss"] == "nan"


def test_leaves_logs_curves_and_checkpoints_of_each(sweep, run, tmp_path):
    said, folder = sweep("{model.lr: [0.01, 0.1]}")
    assert "Sweep on synthetic" in said
    assert "Training on" not in said  # there is no other training
    assert said.count("Training steps: plain") == 1
    assert (folder / "sweep.png").stat().st_size > 10_000
    lowest = min(table(folder), key=lambda row: float(row["best_val_loss"]))
    assert f"next: cifar-lightning test --ckpt_path {folder / lowest['folder']}/checkpoints/best.ckpt" in said
    assert [row["model.lr"] for row in table(folder)] == ["0.01", "0.1"]
    for row in table(folder):
        place = folder / row["folder"]
        assert (place / "learning_curves.png").stat().st_size > 10_000
        events = EventAccumulator(str(place)).Reload()
        assert [each.value for each in events.Scalars("best/val_loss")] == [pytest.approx(float(row["best_val_loss"]))]
        assert f"lr: {row['model.lr']}" in (place / "hparams.yaml").read_text()
        best = place / "checkpoints" / "best.ckpt"
        assert best.stat().st_size < 2 * 300_000  # not the whole stack
        model = MLPClassifier.load_from_checkpoint(best, weights_only=True)
        assert model.hparams["lr"] == float(row["model.lr"])
        assert min(column(place, "val_loss")) == pytest.approx(float(row["best_val_loss"]))
        said = run("test", f"--ckpt_path={best}", *SMALL[:3], f"--trainer.default_root_dir={tmp_path}/test",
                   "--trainer.enable_progress_bar=false")  # fmt: skip
        assert "accuracy" in said
    assert torch.load(best, weights_only=True)["classes"]
    assert not list(folder.rglob("*.new"))


def test_a_sweep_is_not_taken_for_a_training(sweep, run, tmp_path, undrawn, capfd):
    _, folder = sweep(RATES)
    last = folder / "checkpoints/last.ckpt"
    for args in (["test", f"--ckpt_path={last}"], ["fit", f"--ckpt_path={last}"]):
        with pytest.raises(SystemExit):
            run(*args, *FLAGS)
        assert "got that of a whole sweep" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        run("fit", *FLAGS, "--ckpt_path=last", f"--trainer.default_root_dir={tmp_path}/sweep")
    assert "got none with that content" in capfd.readouterr().err


def test_nothing_is_written_where_nothing_is_to_be(sweep, run, tmp_path, undrawn):
    _, folder = sweep(RATES, "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "environment.json", "results.csv", "results.md"}


@pytest.mark.parametrize("value", ["true", "3"])
def test_a_dry_run_writes_nothing(capfd, tmp_path, value):
    main([f"--vary={RATES}", *FLAGS, f"--trainer.fast_dev_run={value}", "--trainer.default_root_dir=dry"])
    assert "networks trained as one" in capfd.readouterr().out
    assert not [path for path in (tmp_path / "dry").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to sweep: expected --vary"),
        (["--vary={}"], "nothing to vary"),
        (["--vary={model.lr: []}"], "wrong choices of model.lr: expected one or more"),
        (["--vary={lr: [1]}"], "lr"),
        (["--vary={model.rate: [1]}"], "unknown option to vary: expected one of model."),
        (["--vary={model.lrr: [1]}"], "got 'model.lrr' (did you mean 'model.lr'"),
        (["--vary={model.hidden_sizes: [2x10, 3x10]}"], "cifar-lightning study --vary '{model.hidden_sizes: [...]}'"),
        (["--vary={data.batch_size: [10, 20]}"], "data.batch_size can't vary in a sweep"),
        (["--vary={model.optimizer.momentun: [0.9]}"], "momentun"),
        (["--vary={model.lr: [-1]}"], "lr must be a positive number, got -1"),
    ],
)
def test_mistakes(fail, args, message):
    assert message in fail(*args, *FLAGS)


def test_each_has_its_own_dropout(sweep, run, tmp_path, undrawn):
    flags = ["--model.dropout=alpha", "--model.dropout_position=all"]
    _, folder = sweep("{model.dropout_p: [0, 0.9]}", *flags)
    run("fit", *FLAGS, *flags, "--model.dropout_p=0", f"--trainer.default_root_dir={tmp_path / 'alone'}")
    without, with_, alone = (
        column(place, "train_step_loss")
        for place in (folder / "dropout_p=0", folder / "dropout_p=0.9", tmp_path / "alone")
    )
    assert without == pytest.approx(alone, rel=1e-5)
    assert with_ != pytest.approx(without, rel=0.1)


def test_copies_start_from_a_pretrained_network(sweep, run, tmp_path, undrawn):
    run("fit", *FLAGS, "--trainer.max_epochs=1", "--trainer.default_root_dir=first")
    (best,) = (tmp_path / "first").rglob("best.ckpt")
    flags = [f"--pretrained.checkpoint={best}", "--pretrained.layers=2"]
    _, folder = sweep(RATES, *flags)
    run("fit", *FLAGS, *flags, "--model.lr=0.01", "--trainer.default_root_dir=alone")
    ours, theirs = (column(place, "train_step_loss") for place in (folder / "lr=0.01", tmp_path / "alone"))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_other_callbacks_act_on_the_whole(sweep, tmp_path, undrawn):
    _, folder = sweep(
        RATES,
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.monitor=val_loss/lr=0.01",
        "--trainer.callbacks.filename=mine",
    )
    assert (folder / "checkpoints/mine.ckpt").is_file()
    assert len(column(folder / "lr=0.01", "lr")) == 24


def test_a_monitor_that_is_not_logged_is_a_mistake(fail):
    flags = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_los"]
    assert "conditioned on metric `val_los` which is not available" in fail(f"--vary={RATES}", *FLAGS, *flags)


def test_compiled_steps_several_at_once(sweep, run, tmp_path, undrawn, uncompiled):
    flags = ["--execution.compile=always", "--execution.steps=5", "--trainer.gradient_clip_val=0.5", "--model.l2=1e-3"]
    flags += ["--trainer.log_every_n_steps=6", "--trainer.max_steps=20"]
    said, folder = sweep("{model.lr: [0.003, 0.01], seed_everything: [1, 2]}", *flags)
    assert "Training steps: compiled, 5 at once" in said
    run("fit", *FLAGS, *flags, "--model.lr=0.01", "--seed_everything=2", "--trainer.default_root_dir=alone")
    for name, count in (("train_step_loss", 3), ("lr", 3), ("train_loss", 2), ("val_loss", 1)):
        ours, theirs = (column(place, name) for place in (folder / "lr=0.01,seed_everything=2", tmp_path / "alone"))
        assert len(theirs) == count
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_bar_names_the_best(capfd, monkeypatch):
    flags = [flag for flag in FLAGS if "progress_bar" not in flag]
    monkeypatch.setattr("cifar_lightning.experiments.sweep.report.draw_learning_curves", lambda *args: None)
    figures = []
    monkeypatch.setattr(ProgressLine, "is_due", True)
    monkeypatch.setattr(ProgressLine, "show", lambda line, *state: figures.extend(state[4:]))
    main([f"--vary={RATES}", *flags, "--trainer.max_epochs=4"])
    best, accuracy, *_ = [each for each in figures if len(each) > 1][-1]  # a validation has a single figure
    assert best == "best lr=0.01"
    assert re.fullmatch(r"best_val_accuracy 0\.\d{3}", accuracy)


def test_one_device_is_taken_of_several(sweep, undrawn):
    _, folder = sweep(RATES, "--trainer.devices=auto", "--trainer.max_epochs=1")
    assert "devices: 1\n" in (folder / "config.yaml").read_text()


def test_an_evaluation_of_a_copy_is_among_the_runs_of_its_config(sweep, run, undrawn):
    _, folder = sweep(RATES, "--trainer.max_epochs=1")
    run("test", f"--ckpt_path={folder}/lr=0.01/checkpoints/best.ckpt", *SMALL[3:], "--trainer.default_root_dir=tests")
    (tested,) = Path("tests").glob("*/test_*")
    assert tested.parent.name == folder.parent.name
