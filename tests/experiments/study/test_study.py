import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from matplotlib.axes import Axes
from PIL import Image

from cifar_lightning import files
from cifar_lightning.experiments.study.__main__ import main
from cifar_lightning.experiments.study.page import write_page
from cifar_lightning.experiments.study.results import (
    Result,
    Statistic,
    draw_curves,
    summarize,
    write_csv,
    write_markdown,
)
from cifar_lightning.experiments.study.run import Run, train_and_test
from cifar_lightning.experiments.study.runner import share_cores

TINY = [*SMALL, "--model.hidden_sizes=2x10", "--trainer.max_epochs=20"]


def row(epoch, loss, accuracy=0.4, seconds=2.0):
    return {"epoch": epoch, "seconds": seconds, "lr": 0.1, "val_loss": loss, "val_accuracy": accuracy}


def result(config="a", seed=1, losses=(2.0, 1.5, 1.8), test_accuracy=0.45):
    rows = [row(i + 1.0, loss, 0.3 + i / 10) for i, loss in enumerate(losses)]
    return Result(config, seed, "synthetic", 1234, f"seed_{seed}/{config}/x", rows, 1.6, test_accuracy)


# ------------------------------------------------------------------------------------------------------- results


def test_the_best_epoch_is_that_of_the_lowest_validation_loss():
    assert result().best["epoch"] == 2
    assert result(losses=(math.nan, 3.0, math.inf)).best["epoch"] == 2
    assert result(losses=(math.nan, math.nan)).best["epoch"] == 1
    assert result().seconds == 6


def test_epochs_to_a_loss():
    assert [result().epochs_to(loss) for loss in (2.5, 2.0, 1.5, 1.4)] == [1, 1, 2, math.inf]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0], "1.00"),
        ([1.0, 2.0, 3.0], "2.00 ± 1.00"),
        ([1.0, math.inf, 3.0], "2.00 ± 1.41 (2 of 3)"),
        ([1.0, math.nan], "1.00 (1 of 2)"),
        ([math.nan, math.inf], "-"),
    ],
)
def test_statistic(values, text):
    assert Statistic.of(values).format(".2f") == text


def test_summaries_compare_with_the_first_config():
    first = [result("a", 1, (2.0, 1.5)), result("a", 2, (2.0, 1.7))]  # mean of the best: 1.6
    second = [result("b", 1, (1.9, 1.6), 0.5), result("b", 2, (1.9, 1.8), 0.6)]
    a, b = summarize([first[0], second[0], first[1], second[1]], "a")
    assert (a.config, a.seeds, a.parameters) == ("a", [1, 2], 1234)
    assert a.val_loss == Statistic.of([1.5, 1.7])
    assert b.test_accuracy == Statistic.of([0.5, 0.6])
    assert b.epochs_to_first.format(".0f") == "2 (1 of 2)"  # seed 2 never comes there
    assert summarize([first[0], second[0]], "a")[0].epochs_to_first.mean == 2
    assert summarize(second, "a")[0].epochs_to_first.format(".0f") == "-"  # the first config has no result yet
    assert summarize([], "a") == []


def test_a_result_survives_its_file(tmp_path):
    result().save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    result().save(path)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        result("b").save(path)
    assert Result.load(path) == result()
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_tables(tmp_path):
    some = [result("a", 1), result("a", 2, test_accuracy=0.47), result("b", 1, (3.0,))]
    write_csv(some, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["config"], line["seed"], line["best_epoch"], line["epochs"]) for line in lines] == [
        ("a", "1", "2.0", "3"),
        ("a", "2", "2.0", "3"),
        ("b", "1", "1.0", "1"),
    ]
    assert float(lines[1]["test_accuracy"]) == 0.47
    write_markdown(some, "a", tmp_path / "results.md", "scripts/study a b")
    text = (tmp_path / "results.md").read_text()
    assert "| a | 1, 2 | 1.500 ± 0.000 | 40.00% ± 0.00% | 46.00% ± 1.41% | 50.00% ± 0.00% | 2 ± 0 | 2 ± 0 |" in text
    assert "| b | 1 | 3.000 | 30.00% | 45.00% | 30.00% | 1 | - |" in text
    assert "`scripts/study a b`" in text


def test_curves_are_drawn_with_what_is_not_finite_left_out(tmp_path, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **kwargs: drawn.append(args) or plot(self, *args, **kwargs))
    draw_curves([result("a", 1), result("c", 1, (math.nan, math.nan))], tmp_path / "curves.png")
    assert drawn[0] == ((1.0, 2.0, 3.0), (2.0, 1.5, 1.8))
    assert drawn[2] == ((1.0, 2.0, 3.0), (0.3, 0.4, 0.5))
    assert Image.open(tmp_path / "curves.png").size == (1560, 600)


# ---------------------------------------------------------------------------------------------------------- page

DRIVER = """
<script>
const seen = { errors: [] };
const names = () => [...document.querySelectorAll("#table tbody tr td:nth-child(2)")].map(cell => cell.textContent);
const lines = () => document.getElementById("chart").data.map(trace => trace.name);
const click = column => document.querySelector(`th[data-column=${column}] button`).click();
seen.start = [names(), lines(), document.querySelectorAll("#pictures img").length];
click("val_loss"); seen.ascending = names();
click("val_loss"); seen.descending = names();
click("name"); seen.byName = names();
const filter = document.getElementById("filter");
filter.value = "B"; filter.dispatchEvent(new Event("input")); seen.filtered = [names(), lines()];
filter.value = ""; filter.dispatchEvent(new Event("input"));
document.querySelector("#table tbody input").click(); seen.unticked = lines();
document.getElementById("x").value = "seconds"; document.getElementById("x").dispatchEvent(new Event("change"));
seen.seconds = document.getElementById("chart").data[0].x;
seen.wide = document.documentElement.scrollWidth;
const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
seen.fetched = loaded.filter(name => !name.startsWith("data:"));
document.body.dataset.seen = JSON.stringify(seen);
</script>
</body>
"""


def test_the_page_holds_the_results(tmp_path):
    some = [result("a", 1), result("b", 1, (1.0, math.nan))]
    (tmp_path / some[0].folder).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / some[0].folder / "reliability.png")
    Image.new("RGB", (9, 9)).save(tmp_path / some[0].folder / "learning_curves.png")
    write_page(some, "a", tmp_path, "scripts/study </script><!-- a")
    text = (tmp_path / "report.html").read_text()
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    page = json.loads(data)
    assert "<" not in data
    assert page["command"] == "scripts/study </script><!-- a"
    assert [config["name"] for config in page["configs"]] == ["a", "b"]
    assert page["configs"][0]["cells"]["test_accuracy"] == {"text": "45.00%", "value": 0.45}
    assert [row["val_loss"] for row in page["runs"][1]["rows"]] == [1.0, None]  # JSON has no NaN
    assert [list(run["pictures"]) for run in page["runs"]] == [["reliability"], []]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_the_page_in_a_browser(tmp_path):
    some = [result("a", 1), result("a", 2), result("b", 1, (3.0, 2.5)), result("c", 1, (1.0, math.nan))]
    (tmp_path / some[0].folder).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / some[0].folder / "reliability.png")
    write_page(some, "a", tmp_path, "scripts/study </script> a b c")
    text = (tmp_path / "report.html").read_text()
    (tmp_path / "driven.html").write_text(DRIVER.join(text.rsplit("</body>", 1)))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900",
         f"--user-data-dir={tmp_path}/c", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/driven.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    encoded = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert encoded, done.stderr
    seen = json.loads(encoded[1].replace("&quot;", '"'))
    assert seen["fetched"] == []
    assert seen["start"] == [["a", "b", "c"], ["a", "a", "b", "c"], 1]
    assert seen["ascending"] == ["c", "a", "b"]
    assert seen["descending"] == ["b", "a", "c"]
    assert seen["byName"] == ["a", "b", "c"]
    assert seen["filtered"] == [["b"], ["b"]]
    assert seen["unticked"] == ["b", "c"]
    assert seen["seconds"] == [2, 4]
    assert seen["wide"] <= 500  # on a phone nothing but the table scrolls sideways


# ------------------------------------------------------------------------------------------------------- mistakes


def mistake(capsys, *args):
    assert main(list(args)) == 2
    return capsys.readouterr().err


def test_a_mistake_stops_a_study_before_anything_runs(capsys):
    Path("a.yaml").write_text("model: {lr: 0.1}")
    Path("b.yaml").write_text("model: {learning_rate: 0.1}")
    assert "error: no config none.yaml: expected a YAML file" in mistake(capsys, "a.yaml", "none.yaml")
    message = mistake(capsys, "a.yaml", "b.yaml")
    assert message.startswith("error: b.yaml does not parse:")
    assert "learning_rate" in message
    assert "a.yaml does not parse: unrecognized arguments: --model.x" in mistake(capsys, "a.yaml", "--model.x", "3")
    assert "a config named twice" in mistake(capsys, "a.yaml", "./a.yaml")
    assert "a seed named twice" in mistake(capsys, "a.yaml", "--seeds", "1", "1")
    assert "jobs out of range: expected 1 or more, received 0" in mistake(capsys, "a.yaml", "--jobs", "0")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed_everything", "3"], "--seed_everything is not for a study: expected --seeds, one for each run"),
        (["--seed_everything=3"], "received 3"),
        (["--config=b.yaml"], "--config is not for a study: expected the configs before all options"),
        (["--ckpt_path", "last"], "--ckpt_path is not for a study: expected none"),
        (["--trainer.default_root_dir=x"], "--trainer.default_root_dir is not for a study: expected --out"),
        (["--trainer.fast_dev_run=true"], "--trainer.fast_dev_run is not for a study: expected runs that can be"),
    ],
)
def test_what_a_study_sets_itself_is_refused(capsys, flags, message):
    Path("a.yaml").write_text("model: {lr: 0.1}")
    assert message in mistake(capsys, "a.yaml", "--seeds", "1", "2", *flags)
    assert message in mistake(capsys, "a.yaml", *flags, "--seeds", "1", "2")


def test_its_own_options_may_stand_after_those_of_fit(capsys):
    Path("a.yaml").write_text("model: {lr: 0.1}")
    options = ["--out", "there", "--jobs", "0", "--seeds", "1"]
    for args in (["a.yaml", "--model.lr", "0.2", *options], ["a.yaml", *options, "--model.lr", "0.2"]):
        assert "jobs out of range" in mistake(capsys, *args)  # so all before it was understood


def test_epochs_without_a_validation_are_no_results_but_epochs():
    rows = [row(1.0, 2.0), row(2.0, 1.0), row(3.0, 3.0), row(4.0, 1.5)]
    for index in (0, 2):
        del rows[index]["val_loss"], rows[index]["val_accuracy"]
    some = Result("a", 1, "synthetic", 1, "seed_1/a/x", rows, 1.6, 0.5)
    assert (some.best["epoch"], some.last["epoch"], some.epochs_to(1.2)) == (2, 4, 2)
    assert some.seconds == 8
    draw_curves([some], Path("curves.png"))
    write_csv([some], Path("results.csv"))
    write_page([some], "a", Path(), "scripts/study a")
    assert '"val_loss": 1.0' in Path("report.html").read_text()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("model: {lr: 0.1}")
    run = Run(config, 1, tmp_path / "out")
    run.prepare()
    run.prepare()
    with pytest.raises(ValueError, match="have changed since it was run: expected those of"):
        Run(config, 1, tmp_path / "out", ("--model.lr=1",)).prepare()
    config.write_text("model: {lr: 0.2}")
    with pytest.raises(ValueError, match="have changed since it was run"):
        run.prepare()


def test_a_stopped_run_goes_on_from_its_newest_checkpoint_that_can_be_read(tmp_path, capsys):
    run = Run(tmp_path / "a.yaml", 3, tmp_path / "out", ("--trainer.max_epochs=2",))
    place = f"--trainer.default_root_dir={tmp_path}/out/seed_3"
    assert run.arguments() == [
        "fit",
        f"--config={tmp_path}/a.yaml",
        "--seed_everything=3",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=2",
        place,
    ]
    for age, name in enumerate(("broken", "newer", "older")):
        path = run.folder / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": {}, "hyper_parameters": {}}, path)
        os.utime(path, (1000 - age, 1000 - age))
    broken = run.folder / "broken" / "checkpoints" / "last.ckpt"
    broken.write_bytes(broken.read_bytes()[:100])
    os.utime(broken, (2000, 2000))
    assert run.arguments() == ["fit", f"--ckpt_path={run.folder}/newer/checkpoints/last.ckpt", place]
    assert "wrong checkpoint" in capsys.readouterr().out


def test_each_job_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores(1)
    assert "OMP_NUM_THREADS" not in os.environ  # the training chooses
    share_cores(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    share_cores(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"  # what is set is kept


# ----------------------------------------------------------------------------------------------------------- runs


def study(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning.experiments.study", *args],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def outcome(out):
    done = Result.load(out / "seed_1" / "a" / "result.json")
    return [(r["epoch"], r["val_loss"]) for r in done.rows], done.test_accuracy


@pytest.mark.parametrize("logger", ["false", "{class_path: CSVLogger, init_args: {save_dir: logs}}"])
def test_a_run_with_any_logger_and_validations_now_and_then(tmp_path, logger):
    (tmp_path / "a.yaml").write_text("model: {lr: 0.01}")
    flags = (*TINY, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2", f"--trainer.logger={logger}")
    run = Run(tmp_path / "a.yaml", 1, tmp_path / "out", flags)
    run.prepare()
    result = train_and_test(run)
    assert [row["epoch"] for row in result.validated] == [2]
    assert len(result.rows) == 3
    assert math.isfinite(result.test_loss)
    assert (tmp_path / "out" / result.folder / "learning_curves.png").exists()


@pytest.mark.slow
def test_a_study(tmp_path, capsys, monkeypatch):
    """A good run, two that fail; one that is interrupted and resumed; and none that runs twice."""
    (tmp_path / "a.yaml").write_text("model: {lr: 0.01}")
    (tmp_path / "b.yaml").write_text("model: {lr: 0.01, dropout: alpha, dropout_p: 2}")  # parses, but can't be built
    (tmp_path / "c.yaml").write_text("trainer: {limit_val_batches: 0}")  # trains, and has no result
    process = study("a.yaml", "b.yaml", "c.yaml", "--seeds", "1", "--jobs", "2", "--out", "whole", *TINY)
    printed = process.communicate()[0]
    assert process.returncode == 1
    assert re.search(r"a, seed 1: validation \d+\.\d+%, test \d+\.\d+%", printed)
    assert re.search(r"error: b, seed 1 failed: dropout probability out of range.*log\.txt", printed)
    assert "error: c, seed 1 failed: no result of a run: expected training epochs with a validation loss" in printed
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert {path.name for path in whole.iterdir()} >= {"results.csv", "results.md", "curves.png", "report.html"}
    assert "| a | 1 |" in (whole / "results.md").read_text()
    assert (whole / Result.load(whole / "seed_1" / "a" / "result.json").folder / "reliability.png").exists()

    again = ["a.yaml", "--seeds", "1", "--out", "stopped", *TINY]
    process = study(*again)
    deadline = time.monotonic() + 120
    while not list(stopped.glob("seed_1/a/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    assert "interrupted: the same command goes on from here" in process.communicate()[0]
    assert process.returncode == 130
    assert not (stopped / "seed_1" / "a" / "result.json").exists()
    assert (stopped / "results.md").exists()
    process = study(*again)
    process.communicate()
    assert outcome(stopped) == outcome(whole)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = (stopped / "seed_1" / "a" / "result.json").stat().st_mtime_ns
    assert main(again) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    assert (stopped / "seed_1" / "a" / "result.json").stat().st_mtime_ns == before
