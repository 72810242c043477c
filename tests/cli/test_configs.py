"""Shipped configs by name: the same file for whatever reads it."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL

from cifar_lightning.cli.configs import SHIPPED, describe, find_config, list_configs, main, shipped_names
from cifar_lightning.cli.find_run import fingerprint

QUICK = [*SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=1x8"]
NAMES = shipped_names()


def test_all_of_configs_is_shipped():
    files = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert set(NAMES) == files
    assert SHIPPED.resolve() == (ROOT / "configs").resolve()


@pytest.mark.parametrize("name", NAMES)
def test_every_config_begins_with_a_line_that_describes_it(name):
    line = (SHIPPED / f"{name}.yaml").read_text().splitlines()[0]
    assert re.fullmatch(r"# \S.*[.:]", line)
    assert describe(name) == line.removeprefix("# ")
    assert "The same" not in line  # as which?


@pytest.mark.parametrize("name", ["one_cycle", "one_cycle.yaml"])
def test_a_name_is_a_shipped_config_where_there_is_no_such_file(name):
    assert find_config(name) == str(SHIPPED / "one_cycle.yaml")
    Path("one_cycle").mkdir()  # a folder is no config
    assert find_config(name) == str(SHIPPED / "one_cycle.yaml")


@pytest.mark.parametrize("name", ["selu", "selu.yaml"])
def test_a_file_wins(name):
    Path(name).write_text("model: {lr: 0.5}")
    assert find_config(name) == name


def test_a_subfolder():
    assert find_config("search/tuner") == str(SHIPPED / "search/tuner.yaml")
    assert find_config("tuner", "search") == str(SHIPPED / "search/tuner.yaml")
    assert find_config("tuner") == str(SHIPPED / "tuner.yaml")
    assert find_config("selu", "search") == str(SHIPPED / "selu.yaml")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").touch()
    assert find_config("~/mine.yaml") == str(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "text",
    ["model: {lr: 0.1}", "{model: {lr: 0.1}}", "trainer:\n  max_epochs: 3\n", "{model: [", "x: " + "y" * 5000],
)
def test_yaml_itself_stays(text):
    assert find_config(text) == text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("one_cicle", "one_cycle"),
        ("configs/one_cycle.yaml", "one_cycle"),
        ("mine/selu.yml", "selu"),
        ("onecycle", "one_cycle"),
        ("alpha-dropout", "alpha_dropout"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"expected a YAML file.*\(did you mean .*\b{near}\b.*got '{name}'"):
        find_config(name)


def test_an_unknown_name_that_is_like_none():
    with pytest.raises(ValueError, match=r"the name of a shipped one, got 'zzz'. cifar-lightning configs lists"):
        find_config("zzz")
    with pytest.raises(ValueError, match="got 'yyyy"):
        find_config("y" * 5000)  # too long for a file's name


def test_the_list_has_each_name_and_fits_on_a_narrow_screen(capsys):
    main([])
    printed = capsys.readouterr().out
    assert printed == list_configs()
    configs, spaces = printed.split("Grids and search spaces")
    for name in NAMES:
        part = spaces if name.startswith(("search/", "grids/")) else configs
        assert re.search(rf"^  {name} ", part, re.MULTILINE), name
    assert max(map(len, printed.splitlines())) <= 80


def test_one_is_printed_as_it_is(capsys):
    Path("one_cycle").write_text("another: one")
    main(["one_cycle"])
    assert capsys.readouterr().out == (SHIPPED / "one_cycle.yaml").read_text()


def test_an_unknown_one_is_not_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["one_cicle"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "did you mean one_cycle" in printed.err


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("flags", [["--config", "one_cycle"], ["-c", "one_cycle"], ["--config=one_cycle.yaml"]])
def test_a_run_by_name_is_one_by_the_file(run, flags):
    run("fit", *flags, *QUICK)
    (saved,) = Path("runs/one_cycle").glob("*/config.yaml")  # the folder has the config's name
    assert fingerprint([str(ROOT / "configs/one_cycle.yaml")]) in saved.read_text().splitlines()[0]
    assert yaml.safe_load(saved.read_text())["model"]["schedule"]["class_path"] == "cifar_lightning.OneCycle"
    run("test", "--config", "one_cycle", "--ckpt_path=best", "--trainer.enable_progress_bar=false")
    run("test", f"--config={ROOT}/configs/one_cycle.yaml", "--ckpt_path=last", "--trainer.enable_progress_bar=false")
    assert len(list(Path("runs/one_cycle").glob("test_*"))) == 2


@pytest.mark.usefixtures("undrawn")
def test_names_merge_with_files_and_flags(run):
    Path("more.yaml").write_text("model: {lr: 0.25, hidden_sizes: 1x8}")
    run("fit", "-c", "selu", "--config=more.yaml", *SMALL, "--trainer.max_epochs=1")
    (saved,) = Path("runs/selu+more").glob("*/config.yaml")
    model = yaml.safe_load(saved.read_text())["model"]
    assert (model["lr"], model["activation"]) == (0.25, "selu")


def test_an_unknown_config_is_one_message(fail):
    assert "did you mean one_cycle" in fail("fit", "--config", "one_cicle")
    assert "did you mean selu" in fail("--config=sellu", "fit")
