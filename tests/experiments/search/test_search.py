import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from conftest import SMALL, make_row
from optuna.trial import TrialState

from cifar_lightning.experiments import run as run_module
from cifar_lightning.experiments.results import Result
from cifar_lightning.experiments.search.command import main, sort_by

pytestmark = pytest.mark.usefixtures("undrawn")

SPACE = """
n: {type: int, low: 1, high: 2}
model.hidden_sizes: "{n}x8"
model.lr: {type: float, low: 1e-4, high: 1e-2, log: true}
"""
FLAGS = [*SMALL, "--trainer.max_epochs=2"]
FOLDER = Path("runs/search/space")


@pytest.fixture(autouse=True)
def _space():
    Path("space.yaml").write_text(SPACE)


@pytest.fixture(autouse=True)
def _unpictured(request, monkeypatch):
    """Draw the pictures of a search only for the test that looks at them: they take a fifth of the time."""
    if request.function is not test_a_search:
        monkeypatch.setattr("cifar_lightning.experiments.search.results.draw_search", lambda *args: None)


@pytest.fixture
def search(capfd):
    def search(*args):
        capfd.readouterr()
        main(["--vary=space.yaml", *FLAGS, *args])
        return capfd.readouterr().out

    return search


@pytest.fixture
def fail(capfd):
    def fail(*args):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["--vary=space.yaml", *FLAGS, *args])
        assert stop.value.code == 2
        printed = capfd.readouterr().err
        assert printed.count("error:") == 1
        assert "Traceback" not in printed
        return printed[printed.index("error:") :]

    return fail


def rows(path=FOLDER / "results.csv"):
    with path.open() as file:
        return list(csv.DictReader(file))


def load(storage=f"sqlite:///{FOLDER}/study.db"):
    return optuna.load_study(study_name="search", storage=storage)


def val_losses(folder):
    return [float(row["val_loss"]) for row in rows(folder / "metrics.csv") if row["val_loss"]]


def test_a_search(search, run):
    printed = search("--trials=2").splitlines()
    assert re.match(
        r"1/2  trial 0, n=\d,lr=\S+  complete  validation loss \d.\d{4}, accuracy \S+%, \d+ s  best ", printed[0]
    )
    assert re.match(r"2/2  trial 1, n=", printed[1])
    assert any(line.split() == ["name", "loss", "accuracy", "per", "epoch"] for line in printed)  # the table
    assert printed[-4:-1] == [
        "2 complete",
        f"written to {FOLDER}:",
        "  results.csv, results.md, best.yaml, optimization_history.png, slice.png, parallel_coordinate.png, "
        "param_importances.png",
    ]
    best = re.fullmatch(
        rf"next: cifar-lightning test --ckpt_path ({FOLDER}/trial_00[01]/checkpoints/best.ckpt)", printed[-1]
    )
    assert best
    assert Path(best[1]).is_file()
    found = rows()
    assert [row["state"] for row in found] == ["complete"] * 2
    for row in found:
        folder = FOLDER / row["folder"]
        assert float(row["best_val_loss"]) == min(val_losses(folder))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["lr"] == float(row["model.lr"])
        assert config["model"]["hidden_sizes"] == row["model.hidden_sizes"]
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert "epoch   2" in (folder / "log.txt").read_text()
    for plot in ("optimization_history", "param_importances", "slice", "parallel_coordinate"):
        assert (FOLDER / f"{plot}.png").stat().st_size > 1000
    assert {path.name for path in FOLDER.glob(".*")} == {".lock", ".study"}  # no litter
    assert "| trial 1, n=" in (FOLDER / "results.md").read_text()
    assert "`cifar-lightning search --vary=space.yaml" in (FOLDER / "results.md").read_text()

    # The best config is one of lightning fit, and gives the same bits.
    best = min(found, key=lambda row: float(row["best_val_loss"]))
    run("fit", f"--config={FOLDER}/best.yaml")
    (again,) = Path("runs/best").iterdir()
    assert val_losses(again) == val_losses(FOLDER / best["folder"])

    # The same command goes on up to the number that it is told, and no further.
    printed = search("--trials=3").splitlines()
    assert printed[0].startswith("3/3  trial 2, n=")
    assert "/3" not in " ".join(printed[1:])
    printed = search("--trials=3").splitlines()
    assert "/3" not in " ".join(printed)
    assert "3 complete" in printed
    assert rows()[:2] == found
    assert len({row["model.lr"] for row in rows()}) == 3


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
def test_a_trials_value_is_of_the_weights_that_it_keeps(search, metric):
    flags = ["--model.optimizer=SGD", "--model.hidden_sizes=1x8", "--trainer.val_check_interval=0.25"]
    search("--trials=1", f"--metric={metric}", "--vary={model.lr: [0.3]}", *flags, "--out=out")  # the loss grows
    (trial,) = load("sqlite:///out/study.db").trials
    with Path("out/trial_000/metrics.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["val_loss"]]
    best = min(found, key=lambda row: float(row["val_loss"]))
    assert best not in found[3::4]  # or the last ones of each epoch would do
    assert trial.value == pytest.approx(float(best[metric]))
    assert trial.value in trial.intermediate_values.values()


def test_a_study_does_not_go_on_with_another_config(search, fail):
    search("--trials=1")
    message = fail("--trials=2", "--model.activation=relu")
    assert "model.activation has changed since the search was started: expected selu" in message
    assert "got relu" in message
    assert "metric has changed" in fail("--trials=2", "--metric=val_accuracy")
    Path("space.yaml").write_text("model.lr: {type: float, low: 1e-4, high: 1e-2}")
    assert "space has changed" in fail("--trials=2")
    Path("space.yaml").write_text(SPACE)
    # A folder of another machine, whose trials this process could not tell from dead ones.
    assert "folder has changed" in fail("--trials=2", "--out=other", f"--storage=sqlite:///{FOLDER}/study.db")


@pytest.mark.parametrize("logger", ["false", "{class_path: CSVLogger, init_args: {save_dir: logs}}"])
def test_any_logger(search, logger):
    search("--trials", "1", f"--trainer.logger={logger}")
    assert [row["state"] for row in rows()] == ["complete"]
    assert (FOLDER / "trial_000" / "config.yaml").exists()
    assert (FOLDER / "trial_000" / "checkpoints" / "best.ckpt").exists()


def test_journal_file_and_accuracy(search):
    search("--trials=2", "--storage=study.log", "--metric=val_accuracy", "--out=out", "--sampler=gp")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    study = load(storage)
    assert study.direction.name == "MAXIMIZE"
    values = [float(row["best_val_accuracy"]) for row in rows(Path("out/results.csv"))]
    assert study.best_value == max(values)
    for trial in study.trials:
        metrics = [row for row in rows(Path(f"out/trial_00{trial.number}/metrics.csv")) if row["val_loss"]]
        lowest = min(metrics, key=lambda row: float(row["val_loss"]))
        assert trial.value == float(lowest["val_accuracy"])


def test_settings_by_name_inline():
    main(["--vary={o: {sgd: {model.optimizer: SGD, model.lr: 0.1}, nadam: {model.lr: 0.001}}}", "--trials=3", *FLAGS])
    found = rows(Path("runs/search/inline/results.csv"))
    for row in found:
        assert row["name"] in (f"trial {row['trial']}, sgd", f"trial {row['trial']}, nadam")
        settings = (row["model.optimizer"], row["model.lr"])
        assert settings == (("SGD", "0.1") if row["name"].endswith("sgd") else ("", "0.001"))


def test_a_diverged_training_is_pruned_and_the_study_goes_on(search):
    Path("space.yaml").write_text("model.lr: [1e30, 0.001]")
    search("--trials=4", "--trainer.max_epochs=3")
    for row in rows():
        assert row["state"] == ("pruned" if float(row["model.lr"]) == 1e30 else "complete")
        assert row["epochs"] == ("" if float(row["model.lr"]) == 1e30 else "3")
        assert row["error"].startswith("the loss is nan in step" if float(row["model.lr"]) == 1e30 else "")
    assert {row["state"] for row in rows()} == {"pruned", "complete"}
    assert load().best_value == min(float(row["best_val_loss"]) for row in rows() if row["state"] == "complete")


def test_a_failed_trial_is_reported_and_the_others_go_on(search, monkeypatch):
    train = run_module.CLI

    def sometimes(args, callbacks, folder):
        if folder.name in ("trial_000", "trial_002"):
            raise torch.OutOfMemoryError("out of memory")
        return train(args, callbacks, folder)

    monkeypatch.setattr(run_module, "CLI", sometimes)
    printed = search("--trials=2").splitlines()
    assert re.match(r"0/2  trial 0, n=\S+  fail  OutOfMemoryError: out of memory  no best yet", printed[0])
    assert "2 complete, 2 fail" in printed
    assert [row["error"] for row in rows()][::2] == ["OutOfMemoryError: out of memory"] * 2


def test_failures_in_a_row_end_the_search(fail):
    message = fail("--data.source=cifar10", "--data.data_dir=nowhere", "--data.download=false")
    assert "the search gave up after 3 failed trials in a row; the last error was" in message
    assert "got 'nowhere' (no such directory)" in message
    assert [trial.state for trial in load().trials] == [TrialState.FAIL] * 3


def test_a_pruned_training_can_be_resumed(search, run, monkeypatch):
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: len(trial.study.trials) == 2)
    search("--trials=2")
    assert [(row["state"], row["epochs"]) for row in rows()] == [("complete", "2"), ("pruned", "1")]
    assert len(val_losses(FOLDER / "trial_001")) == 1
    run("fit", f"--ckpt_path={FOLDER}/trial_001/checkpoints/last.ckpt")
    (resumed,) = [path for path in FOLDER.parent.parent.rglob("metrics.csv") if "trial_" not in str(path)]
    assert len(val_losses(resumed.parent)) == 1


def test_a_finder_in_the_place_of_a_training_is_a_failure(fail):
    message = fail("--trainer.callbacks+=LRFinder", "--trainer.callbacks.stop=true")
    assert "gave up" in message
    assert "the run has no result: expected epochs with a validation loss, got 0" in rows()[0]["error"]


@pytest.mark.parametrize(
    ("space", "flags", "message"),
    [
        (
            "model.lr: [0.1]",
            ["--sampler=gp", "--pruner=median"],
            "--sampler gp needs --pruner none",
        ),
        ("model.lrr: [0.1]", [], "unknown option to vary: expected one of model."),
        ("model.lrr: [0.1]", [], "got 'model.lrr' (did you mean 'model.lr'"),
        ("mdel.lr: [0.1]", [], "expected one of model, data, trainer; got 'mdel.lr'"),
        (
            "data.batch_size: {type: int, low: 0, high: 8}",
            [],
            "batch_size must be at least 1, got 0",
        ),
        (
            "n: {type: int, low: 0, high: 3}\nmodel.hidden_sizes: '{n}x8'",
            [],
            "--model.hidden_sizes=0x8: hidden_sizes must be",
        ),
        ("model.activation: [relu, sellu]", [], "sellu"),
        ("model.lr: {type: float, low: -1, high: 1}", [], "lr must be a positive number, got -1"),
        ("model.optimizer.momentun: [0.1]", [], "momentun"),
        (SPACE, ["--model.nonsense=1"], "model.nonsense"),
        (SPACE, ["--trails=3"], "trails"),
        (SPACE, ["--sampler=tpee"], "sampler"),
        (SPACE, ["--trials=0"], "trials"),
        (SPACE, ["--trainer.devices=2"], "--trainer.devices must be 1 in a search"),
        (SPACE, ["--trainer.num_nodes=2"], "--trainer.num_nodes must be 1 in a search"),
        (SPACE, ["--trainer.fast_dev_run=true"], "--trainer.fast_dev_run does not work for many runs"),
        (SPACE, ["--trainer.default_root_dir=x"], "--trainer.default_root_dir does not work for many runs: use --out"),
        (SPACE, ["--ckpt_path=last"], "--ckpt_path does not work for many runs: use none"),
        ("trainer.fast_dev_run: [true]", [], "--trainer.fast_dev_run does not work for many runs"),
    ],
)
def test_a_mistake_ends_in_one_message_before_the_first_trial(fail, space, flags, message):
    Path("space.yaml").write_text(space)
    assert message in fail(*flags)
    assert [path.name for path in Path().iterdir()] == ["space.yaml"]


def start(*args):
    call = "import sys; from cifar_lightning.experiments.search.command import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", call, "--vary=space.yaml", *FLAGS, *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )


def table(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder / "results.csv")]


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "how"), [("sqlite", signal.SIGKILL), ("journal", signal.SIGTERM)])
def test_a_search_that_was_stopped_gives_the_table_of_one_that_was_not(storage, how):
    """Stopped in the first trial and in the third, of which some are pruned."""
    flags = ["--trainer.max_epochs=20", "--trials=5", "--startup_trials=2"]

    def begin(out):
        return start(*flags, f"--out={out}", *([f"--storage={out}.log"] if storage == "journal" else []))

    process = begin("whole")
    assert "5/5" in process.communicate()[0]
    for trial in ("trial_000", "trial_002"):
        process = begin("stopped")
        while not (Path("stopped") / trial / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, how)
        _, said = process.communicate()
        assert process.returncode == (-9 if how == signal.SIGKILL else 130)
        assert ("interrupted: run the same command again to resume" in said) == (how != signal.SIGKILL)
        assert "Traceback" not in said
    process = begin("stopped")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert re.search(r"trial 2, n=\S+  resumes after epoch \d+: its process was stopped", printed)
    assert len(table(Path("whole"))) == 5
    assert table(Path("stopped")) == table(Path("whole"))


@pytest.mark.slow
def test_a_trial_that_is_killed_again_and_again_fails():
    flags = ["--trainer.max_epochs=1", "--trials=1", "--data.synthetic_size=20000"]
    for _ in range(3):
        process = start(*flags)
        while not (FOLDER / "trial_000" / "metrics.csv").exists():  # written after fifty steps
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        (FOLDER / "trial_000" / "metrics.csv").unlink()
    printed, said = start(*flags).communicate()
    assert re.search(r"trial 0, n=\S+  fail  its process was killed 3 times in epoch 1", printed), said
    assert [row["state"] for row in rows()] == ["fail", "complete"]


@pytest.mark.slow
def test_two_processes_share_the_trials():
    processes = [start("--trials=4") for _ in range(2)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    trials = load().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len({trial.params["model.lr"] for trial in trials}) == 4
    assert sum(len(re.findall(r"\d/4  trial ", out)) for out, _ in said) == 4
    assert all(math.isfinite(float(row["best_val_loss"])) for row in rows())


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "cifar-lightning search",
        "--vary",
        "--trials",
        "val_loss,val_accuracy",
        "tpe,gp,random",
        "auto,median,hyperband,none",
        "--storage",
        "--out",
    ):
        assert text in printed


@pytest.mark.parametrize(("metric", "order"), [("val_loss", "bac"), ("val_accuracy", "abc")])
def test_the_best_come_first_and_what_is_no_number_last(metric, order):
    rows = {"c": (math.nan, math.nan), "a": (2.0, 0.5), "b": (1.0, 0.4)}
    results = [
        Result(name, 1, "synthetic", 1, name, [make_row(1.0, loss) | {"val_accuracy": accuracy}])
        for name, (loss, accuracy) in rows.items()
    ]
    assert "".join(result.name for result in sort_by(metric, results)) == order
