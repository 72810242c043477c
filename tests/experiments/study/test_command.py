import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL

from cifar_lightning.experiments.grid import read_grid
from cifar_lightning.experiments.study.command import main, make_runs

TINY = [*SMALL, "--model.hidden_sizes=2x10"]


@pytest.fixture(autouse=True)
def _configs():
    Path("a.yaml").write_text("model: {lr: 0.01}")
    Path("b.yaml").write_text("model: {learning_rate: 0.1}")


@pytest.fixture
def fail(capsys):
    def fail(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("error:") == 1
        assert not Path("runs").exists()
        return printed[printed.index("error:") :]

    return fail


def test_a_mistake_stops_a_study_before_anything_runs(fail):
    message = fail("a.yaml", "b.yaml")
    assert message.startswith("error: b.yaml: ")
    assert "learning_rate" in message
    assert "none.yaml" in fail("a.yaml", "none.yaml")
    assert "model.x" in fail("a.yaml", "--model.x", "3")
    assert "expected each config only once" in fail("a.yaml", "./a.yaml")
    assert "expected each seed only once" in fail("a.yaml", "--seeds", "1", "1")
    assert "jobs" in fail("a.yaml", "--jobs", "0")
    assert "nothing to vary" in fail("a.yaml", "--vary", "")
    assert "vray" in fail("a.yaml", "--vray", "{model.lr: [1]}")
    assert "configs" in fail()
    assert "did you mean 'model.lr'" in fail("a.yaml", "--vary", "{model.lrr: [1]}")
    assert "model.lr is a range" in fail("a.yaml", "--vary", "{model.lr: {type: float, low: 1, high: 2}}")
    assert "a.yaml with --model.lr=-1: lr must be" in fail("a.yaml", "--vary", "{model.lr: [1, -1]}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed_everything", "3"], "--seed_everything does not work for many runs: use --seeds, one for each run"),
        (["--seed_everything=3"], "got 3"),
        (["--config=b.yaml"], "--config does not work for many runs: use the configs before all options"),
        (["-c", "b.yaml"], "-c does not work for many runs: use the configs before all options"),
        (["--ckpt_path", "last"], "--ckpt_path does not work for many runs: use none"),
        (["--trainer.default_root_dir=x"], "--trainer.default_root_dir does not work for many runs: use --out"),
        (["--trainer.fast_dev_run=true"], "--trainer.fast_dev_run does not work for many runs: use runs that can be"),
        (["--vary={seed_everything: [1]}"], "--seed_everything does not work for many runs: use --seeds"),
    ],
)
def test_what_a_study_sets_itself_is_refused(fail, flags, message):
    assert message in fail("a.yaml", "--seeds", "1", "2", *flags)
    assert message in fail("a.yaml", *flags, "--seeds", "1", "2")


def test_its_own_options_may_stand_after_those_of_fit(fail):
    options = ["--out", "there", "--jobs", "1", "--seeds", "1", "1"]
    for args in (["a.yaml", "--model.lr", "0.2", *options], ["a.yaml", *options, "--model.lr", "0.2"]):
        assert "expected each seed only once" in fail(*args)  # so all before it was understood


def test_runs_are_configs_by_points_by_seeds():
    Path("c.yaml").write_text("model: {lr: 0.02}")
    grid = read_grid("{o: {low: {model.lr: 0.1}, high: {model.lr: 0.2}}}")
    runs = make_runs(["a.yaml", "c.yaml"], grid, [1, 2], Path("out"), ["--trainer.max_epochs=2"])
    assert [run.title for run in runs] == [
        f"{config}, {point}, seed {seed}" for seed in (1, 2) for config in "ac" for point in ("low", "high")
    ]
    assert runs[1].name == "a, high"
    assert runs[1].place == "a,high/seed_1"
    assert runs[1].values == {"model.lr": 0.2}
    assert runs[1].command() == [
        "fit",
        "--config=a.yaml",
        "--seed_everything=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=2",
        "--model.lr=0.2",
    ]
    (inline,) = make_runs(["{model: {lr: 0.1}}"], None, [3], Path("out"), [])
    assert (inline.name, inline.place) == ("inline", "inline/seed_3")
    (plain,) = make_runs(["a.yaml"], None, [3], Path("out"), [])
    assert (plain.name, plain.place, plain.values) == ("a", "a/seed_3", {})


def test_a_study_that_is_refused_writes_nothing(fail):
    Path("c.yaml").write_text("model: {lr: 0.02}")
    (begun,) = make_runs(["a.yaml"], None, [1], Path("out"), [])
    begun.prepare()
    begun.log.touch()
    message = fail("c.yaml", "a.yaml", "--seeds", "1", "--model.l2", "1", "--out", "out")
    assert "got --model.l2=1 instead of none" in message
    assert [path.name for path in Path("out").iterdir()] == ["a"]


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for text in ("cifar-lightning study", "--vary", "--seeds", "--jobs", "--out"):
        assert text in printed


# ----------------------------------------------------------------------------------------------- in real processes

CALL = "import sys; from cifar_lightning.experiments.study.command import main; main(sys.argv[1:])"


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *args, *TINY],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def table(out):
    with (out / "results.csv").open() as file:
        return [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]


def kill_when(process, condition, how):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, how)
    return process.communicate()[0]


@pytest.mark.slow
def test_a_good_run_and_two_that_fail():
    Path("b.yaml").write_text("trainer: {accelerator: tpu}")  # parses, but can't be built
    Path("c.yaml").write_text("trainer: {limit_val_batches: 0}")  # trains, and has no result
    process = start("a.yaml", "b.yaml", "c.yaml", "--seeds", "1", "--jobs", "2", "--out", "whole")
    printed = process.communicate()[0]
    assert process.returncode == 1
    assert re.search(r"a, seed 1: validation loss \d+\.\d+, accuracy \d+\.\d+%, test accuracy \d+\.\d+%", printed)
    assert re.search(r"error: b, seed 1 failed: .*(TPU|torch_xla).*log\.txt", printed)
    assert "error: c, seed 1 failed: the run has no result: expected epochs with a validation loss" in printed
    whole = Path("whole")
    assert {path.name for path in whole.iterdir()} >= {"results.csv", "results.md", "curves.png", "report.html"}
    assert "| a | 1 |" in (whole / "results.md").read_text()
    assert (whole / "a" / "seed_1" / "reliability.png").exists()
    assert [line["name"] for line in table(whole)] == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_stopped_gives_the_table_of_one_that_was_not(how):
    """Two configs and two seeds, stopped once in the first run and once in the third."""
    Path("b.yaml").write_text("model: {lr: 0.003, activation: selu}")
    study = ["a.yaml", "b.yaml", "--seeds", "1", "2", "--trainer.max_epochs=20"]
    whole, stopped = Path("whole"), Path("stopped")
    process = start(*study, "--out=whole")
    assert "4/4" in process.communicate()[0]
    for run in ("a/seed_1", "a/seed_2"):
        process = start(*study, "--out=stopped")
        folder = stopped / run
        printed = kill_when(process, (folder / "checkpoints" / "last.ckpt").exists, how)
        assert process.returncode == (-9 if how == signal.SIGKILL else 130)
        assert ("interrupted: run the same command again to resume" in printed) == (how != signal.SIGKILL)
        assert not (folder / "result.json").exists()
    process = start(*study, "--out=stopped")
    printed = process.communicate()[0]
    assert process.returncode == 0
    assert "2 of 4 runs are already finished" in printed
    assert table(stopped) == table(whole)
    assert len(table(whole)) == 4

    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("result.json")}
    process = start(*study, "--out=stopped")
    assert "4 of 4 runs are already finished" in process.communicate()[0]
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("result.json")} == before


@pytest.mark.slow
def test_broken_files_do_not_end_a_study():
    study = ["a.yaml", "--seeds", "1", "2", "--trainer.max_epochs=2", "--out=out"]
    start(*study).communicate()
    whole = table(Path("out"))
    (Path("out/a/seed_1/result.json")).write_text('{"name": ')
    (Path("out/a/seed_2/recipe.json")).write_text("")
    process = start(*study)
    printed = process.communicate()[0]
    assert process.returncode == 0
    assert "Traceback" not in printed
    assert printed.count("does not count as finished") == 2
    assert table(Path("out")) == whole
