import csv
import math

import pytest
from conftest import make_result as result
from conftest import make_row as row
from rich.console import Console

from cifar_lightning import files
from cifar_lightning.experiments.results import (
    Result,
    Statistic,
    make_table,
    summarize,
    write_csv,
    write_markdown,
)


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


def test_summaries_compare_with_the_first():
    first = [result("a", 1, (2.0, 1.5)), result("a", 2, (2.0, 1.7))]  # mean of the best: 1.6
    second = [result("b", 1, (1.9, 1.6), 0.5), result("b", 2, (1.9, 1.8), 0.6)]
    a, b = summarize([first[0], second[0], first[1], second[1]], "a")
    assert (a.name, a.seeds, a.parameters) == ("a", [1, 2], 1234)
    assert a.statistics["val_loss"] == Statistic.of([1.5, 1.7])
    assert b.statistics["test_accuracy"] == Statistic.of([0.5, 0.6])
    assert b.cell("epochs_to_first") == "2 (1 of 2)"  # seed 2 never comes there
    assert summarize([first[0], second[0]], "a")[0].statistics["epochs_to_first"].mean == 2
    assert summarize(second, "a")[0].cell("epochs_to_first") == "-"  # the first has no result yet
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
    write_csv([each.line() for each in some], tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["name"], line["seed"], line["best_epoch"], line["epochs"]) for line in lines] == [
        ("a", "1", "2.0", "3"),
        ("a", "2", "2.0", "3"),
        ("b", "1", "1.0", "1"),
    ]
    assert float(lines[1]["test_accuracy"]) == 0.47
    write_markdown(some, "a", tmp_path / "results.md", "cifar-lightning study a b")
    text = (tmp_path / "results.md").read_text()
    assert "| a | 1, 2 | 1.500 ± 0.000 | 40.00% ± 0.00% | 46.00% ± 1.41% | 50.00% ± 0.00% | 2 ± 0 | 2 ± 0 |" in text
    assert "| b | 1 | 3.000 | 30.00% | 45.00% | 30.00% | 1 | - |" in text
    assert "`cifar-lightning study a b`" in text


def test_epochs_without_a_validation_are_no_results_but_epochs():
    rows = [row(1.0, 2.0), row(2.0, 1.0), row(3.0, 3.0), row(4.0, 1.5)]
    for index in (0, 2):
        del rows[index]["val_loss"], rows[index]["val_accuracy"]
    some = Result("a", 1, "synthetic", 1, "a/seed_1", rows, {}, 1.6, 0.5)
    assert (some.best["epoch"], some.last["epoch"], some.epochs_to(1.2)) == (2, 4, 2)
    assert some.seconds == 8


def test_what_varied_has_columns_and_lists_are_json(tmp_path):
    some = [
        Result("a, 1", 1, "synthetic", 1, "a", [row(1.0, 2.0)], {"model.lr": 0.1, "data.classes": ["cat", "dog"]}),
        Result("a, 2", None, "synthetic", 1, "b", [row(1.0, 2.0)], {"model.lr": 0.2}),
    ]
    write_csv([{"trial": i} | each.line() for i, each in enumerate(some)], tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["trial"], line["model.lr"], line["data.classes"]) for line in lines] == [
        ("0", "0.1", '["cat", "dog"]'),
        ("1", "0.2", ""),
    ]
    assert lines[1]["seed"] == ""


def test_test_accuracy_has_a_column_where_something_was_tested(tmp_path):
    for tested in (0.4, math.nan):
        some = [result(test_accuracy=tested), result("b", test_accuracy=math.nan)]
        write_markdown(some, "a", tmp_path / "results.md", "")
        assert ("test accuracy" in (tmp_path / "results.md").read_text()) == math.isfinite(tested)
        titles = [str(column.header).replace("\n", " ") for column in make_table(some, "a").columns]
        assert ("test accuracy" in titles) == math.isfinite(tested)
        assert ("test accuracy" in str(some[0])) == math.isfinite(tested)


def test_a_table_keeps_to_80_columns_and_breaks_names_between_their_parts(capsys):
    name = "trial 3, n_hidden=10,n_neurons=102,model.lr=0.0005286"
    Console(width=80).print(make_table([result(name, 1), result(name, 2)], name))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for part in ("n_hidden=10,", "n_neurons=102,", "model.lr=0.0005286", "1.500 ± 0.000", "45.00% ± 0.00%"):
        assert part in "\n".join(lines)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"name": "a"}', "\xff"])
def test_a_result_that_is_not_whole(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="broken result .*result.json: expected the file of a finished run, got"):
        Result.load(path)


@pytest.mark.parametrize("part", range(1, 10))
def test_a_result_that_is_cut_short(tmp_path, part):
    path = tmp_path / "result.json"
    result().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: part * len(content) // 10])
    with pytest.raises(ValueError, match="broken result"):
        Result.load(path)


def test_a_result_without_a_validation_is_none(tmp_path):
    path = tmp_path / "result.json"
    Result("a", 1, "synthetic", 1, "a", [{"epoch": 1.0, "seconds": 1.0}]).save(path)
    with pytest.raises(ValueError, match="broken result"):
        Result.load(path)


def test_a_module_that_logs_no_accuracy_has_a_result_all_the_same():
    bare = Result("a", 1, "synthetic", 1, "a", [{"epoch": 1.0, "seconds": 1.0, "lr": 0.1, "val_loss": 2.0}])
    assert str(bare) == "validation loss 2.0000, accuracy nan%, 1 s"
    (summary,) = summarize([bare], "a")
    assert summary.cell("val_accuracy") == "-"
