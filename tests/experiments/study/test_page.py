import json
import math
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from browser import Browser, needs_chromium
from conftest import make_result as result
from conftest import make_row as row
from PIL import Image

from cifar_lightning.analysis.plots import draw_learning_curves
from cifar_lightning.experiments.results import COLUMNS, Result
from cifar_lightning.experiments.study.page import write_page

LAYOUT = (Path(__file__).parent / "layout.js").read_text()


def read(folder):
    """What the page in a folder was given."""
    text = (folder / "report.html").read_text()
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert "<" not in data
    return json.loads(data)


def test_the_page_holds_the_results(tmp_path):
    some = [result("a", 1), result("b", 1, (1.0, math.nan))]
    (tmp_path / some[0].folder).mkdir(parents=True)
    for name in ("confusion", "learning_curves", "reliability"):
        Image.new("RGB", (8, 6)).save(tmp_path / some[0].folder / f"{name}.png")
    write_page(some, "a", tmp_path, "cifar-lightning study </script><!-- a")
    page = read(tmp_path)
    assert page["command"] == "cifar-lightning study </script><!-- a"
    assert [config["name"] for config in page["configs"]] == ["a", "b"]
    assert page["configs"][0]["cells"]["test_accuracy"] == {"text": "45.00%", "value": 0.45}
    assert page["runs"][1]["curves"]["val_loss"] == [1.0, None]  # JSON has no NaN
    assert page["configs"][1]["bands"]["val_loss"]["mean"] == [1.0]
    assert page["runs"][1]["seconds"] == [2.0, 4.0]
    assert [list(run["pictures"]) for run in page["runs"]] == [["learning curves", "confusion", "reliability"], []]
    picture = page["runs"][0]["pictures"]["confusion"]
    assert (picture["file"], picture["width"], picture["height"]) == ("confusion.png", 4, 3)  # at the screen's size


def test_each_column_says_what_it_is(tmp_path):
    write_page([result("selu", 1)], "selu", tmp_path, "")
    columns = {column["name"]: column for column in read(tmp_path)["columns"]}
    assert columns.keys() == COLUMNS.keys()
    assert all(column["meaning"].endswith(".") for column in columns.values())
    assert columns["epochs_to_first"]["title"] == "epochs to selu's loss"
    assert "the mean of selu's lowest losses" in columns["epochs_to_first"]["meaning"]


@pytest.mark.parametrize("name", ["a", "a, model.lr=0.1, x=50%", "ä#?"])
def test_links_lead_to_the_folders_of_the_runs(tmp_path, name):
    write_page([result(name, 1)], name, tmp_path, "")
    (run,) = read(tmp_path)["runs"]
    url = urlparse(run["folder"])
    assert unquote(url.path) == f"{name}/seed_1/"
    assert url.scheme + url.query + url.fragment == ""


def test_epochs_without_a_validation_are_gaps(tmp_path):
    rows = [row(1.0, 2.0), row(2.0, 1.0)]
    del rows[0]["val_loss"], rows[0]["val_accuracy"]
    write_page([Result("a", 1, "synthetic", 1, "a/seed_1", rows)], "a", tmp_path, "cifar-lightning study a")
    assert read(tmp_path)["runs"][0]["curves"]["val_loss"] == [None, 1.0]


# ------------------------------------------------------------------------------------------------ in a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A study of three configs and three seeds, one of which has no loss, and one of thirty runs with long names."""
    folders = {"nine": tmp_path_factory.mktemp("nine"), "thirty": tmp_path_factory.mktemp("thirty")}
    losses = {"selu": (2.0, 1.6, 1.7), "batch_norm": (1.9, 1.5, 1.4, 1.45), "alpha_dropout": (1.7, 1.65, math.nan)}
    nine = [
        result(name, seed, [loss + seed / 30 for loss in some] + [1.9] * seed)
        for seed in (1, 2, 3)
        for name, some in losses.items()
    ]
    thirty = [
        result(f"chapter_11, model.lr={lr}, model.activation={activation}", 1, (2.0, 1.5 + i / 10, 1.8))
        for i, lr in enumerate((0.0001, 0.0003, 0.001, 0.003, 0.01))
        for activation in ("relu", "selu", "leaky_relu", "gelu", "mish", "softplus")
    ]
    for name, results in (("nine", nine), ("thirty", thirty)):
        for each in results[:4]:
            folder = folders[name] / each.folder
            folder.mkdir(parents=True)
            draw_learning_curves(each.rows, folder / "learning_curves.png")
            Image.new("RGB", (1400, 1440)).save(folder / "reliability.png")
        write_page(results, results[0].name, folders[name], f"cifar-lightning study {' '.join(losses)} --seeds 1 2 3")
    return {name: folder / "report.html" for name, folder in folders.items()}


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("study", ["nine", "thirty"])
def test_nothing_is_cut_off_covered_or_pale(browser, studies, study, width, scheme):
    browser.open(studies[study], width, dark=scheme == "dark")
    browser.evaluate("document.getElementById('unfold').click(); document.querySelector('details').open = true")
    seen = browser.evaluate(LAYOUT)
    assert browser.errors == []
    assert seen["width"] == width
    for what in ("outside", "overlaps", "pale", "faint", "cut", "covered"):
        assert seen[what] == [], what
    if width > 390:
        assert seen["tables"] == [0, 0]  # no column is to be scrolled to
    across, height = seen["plot"]
    assert across > 0.75
    assert height > 200
    (shown,) = {round(shown) for _, shown in seen["images"]}
    assert shown >= 600  # panels that can be read, also on a phone, where they scroll


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("study", ["nine", "thirty"])
def test_on_a_phone_the_names_stay_in_sight(browser, studies, study):
    browser.open(studies[study], 390)
    seen = browser.evaluate("""(() => {
      const scroll = document.querySelector(".scroll");
      scroll.scrollIntoView();
      scroll.scrollLeft = 10000;
      const name = scroll.querySelector("tbody .name span"), box = name.getBoundingClientRect();
      const at = document.elementFromPoint(box.left + box.width / 2, box.top + 5);
      const last = scroll.querySelector("tbody tr td:last-child").getBoundingClientRect();
      return { moved: scroll.scrollLeft, isName: at === name, column: name.closest("th").getBoundingClientRect().width,
               last: last.right };
    })()""")
    assert seen["moved"] > 100
    assert seen["isName"]
    assert seen["column"] < 0.55 * 390
    assert seen["last"] <= 390  # and the last column can be reached


CLICK = """
const names = () => [...document.querySelectorAll("#table tr.config .name")].map(cell => cell.textContent);
const lines = () => [...new Set(document.getElementById("chart").data.map(trace => trace.name))];
const sort = column => document.querySelector(`th[data-column=${column}] button`).click();
const set = (id, value, event = "change") => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
};
"""


@pytest.fixture
def page(browser, tmp_path):
    """A page of four runs, and a function that evaluates what is done to it."""
    some = [result("a", 1), result("a", 2, (2.5, 2.0)), result("b", 1, (3.0, 2.5)), result("c", 1, (1.0, math.nan))]
    for each in some[:3]:
        (tmp_path / each.folder).mkdir(parents=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / each.folder / "reliability.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / some[0].folder / "signals.png")
    write_page(some, "a", tmp_path, "cifar-lightning study </script> a b c")
    browser.open(tmp_path / "report.html", 1280)
    yield lambda script: browser.evaluate(f"(async () => {{ {CLICK} {script} }})()")
    assert browser.errors == []


@needs_chromium
@pytest.mark.slow
class TestInABrowser:
    def test_rows_are_sorted_filtered_and_picked(self, page):
        assert page("return [names(), lines()]") == [["a", "b", "c"], ["a", "b", "c"]]
        assert page("sort('val_loss'); return names()") == ["c", "a", "b"]
        assert page("sort('val_loss'); return names()") == ["b", "a", "c"]
        assert page("sort('name'); return names()") == ["a", "b", "c"]
        assert page("set('filter', 'B', 'input'); return [names(), lines()]") == [["b"], ["b"]]
        assert page("set('filter', '', 'input'); return names()") == ["a", "b", "c"]
        assert page("document.querySelector('#table tbody input').click(); return lines()") == ["b", "c"]
        assert page("document.getElementById('none').click(); return lines()") == []
        assert page("document.querySelector('#legend button').click(); return lines()") == ["a"]

    def test_nothing_is_fetched(self, page):
        fetched = page("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []

    def test_the_seeds_of_a_config_unfold(self, page):
        seeds = (
            "return [...document.querySelectorAll('tr.seed')].map(row => [...row.cells].map(cell => cell.innerText))"
        )
        assert page(seeds) == []
        rows = page("document.querySelector('.fold').click();" + seeds)
        assert [cells[0] for cells in rows] == ["seed 1 folder", "seed 2 folder"]
        assert [cells[2] for cells in rows] == ["1.500", "2.000"]
        assert page("return document.querySelector('tr.config td:nth-child(3)').innerText") == "1.750 ± 0.354"
        links = page("return [...document.querySelectorAll('tr.seed a')].map(link => link.getAttribute('href'))")
        assert links == ["a/seed_1/", "a/seed_2/"]
        assert page("document.querySelector('.fold').click();" + seeds) == []

    def test_every_column_explains_itself(self, page):
        titles = page("return [...document.querySelectorAll('#table thead abbr')].map(abbr => abbr.title)")
        assert len(titles) == 11
        assert all(len(title) > 20 for title in titles)
        assert page("return document.querySelectorAll('#meanings dt').length") == 11

    def test_the_chart_has_bands_stars_and_percents(self, page):
        chart = """const { data, layout } = document.getElementById("chart"); return {
          lines: data.filter(t => t.name === "a").map(t => [t.x, t.y, t.fill ?? "", t.marker?.symbol ?? ""]),
          format: layout.yaxis.tickformat };"""
        seen = page(chart)
        assert seen["lines"] == [
            [[1, 2], [2.0, 1.5], "", ""],
            [[1, 2], [2.5, 2.0], "tonexty", ""],
            [[1, 2], [2.25, 1.75], "", ""],
            [[2, 3], [1.5, 1.8], "", ""],
            [[2], [1.5], "", "star"],
        ]
        assert seen["format"] == ""
        assert page("set('y', 'val_accuracy');" + chart)["format"] == "~%"
        assert page("set('x', 'seconds'); return document.getElementById('chart').data[0].x") == [2, 4]
        each = page("set('x', 'epochs'); set('y', 'val_loss'); set('seeds', 'each');" + chart)["lines"]
        assert [line[1] for line in each if not line[3]] == [[2.0, 1.5, 1.8], [2.5, 2.0]]

    def test_losses_far_apart_are_logarithmic(self, page):
        assert page("return document.getElementById('chart').layout.yaxis.type") == "linear"
        wide = "data.runs[0].curves.val_loss[0] = 100; set('y', 'val_loss');"
        assert page(wide + "return document.getElementById('chart').layout.yaxis.type") == "log"

    def test_two_runs_are_put_side_by_side(self, page):
        chosen = "return ['A', 'B'].map(side => document.getElementById(side).selectedOptions[0].textContent)"
        figures = "return [...document.querySelectorAll('#figures tr')].map(r => [...r.cells].map(c => c.innerText))"
        pictures = "return [...document.querySelectorAll('#pictures figcaption')].map(c => c.textContent)"
        assert page(chosen) == ["a, seed 1", "b, seed 1"]
        rows = page(figures)
        assert rows[0] == ["", "a, seed 1", "b, seed 1"]
        assert rows[1] == ["validation loss", "1.500", "2.500"]
        assert page(pictures) == ["a, seed 1: reliability", "b, seed 1: reliability"]
        assert page("set('picture', 'signals');" + pictures) == ["a, seed 1: signals", "b, seed 1: none"]
        file = page("return document.querySelector('#pictures a').getAttribute('href')")
        assert file == "a/seed_1/signals.png"
        second = "document.querySelector('.fold').click(); document.querySelectorAll('tr.seed .side')[3].click();"
        assert page(second + chosen) == ["a, seed 1", "a, seed 2"]
        assert page("set('B', '');" + figures)[0] == ["", "a, seed 1"]
        assert page("set('A', '3');" + pictures) == ["c, seed 1: none"]

    def test_the_table_is_copied_as_markdown(self, page):
        copied = """let copied = null;
          navigator.clipboard.writeText = async text => { copied = text; };
          sort("val_loss"); document.querySelectorAll(".fold")[1].click();
          document.getElementById("copy").click();
          await new Promise(done => setTimeout(done, 50));
          return copied;"""
        lines = page(copied).splitlines()
        assert lines[0].startswith("| config | seeds | validation loss | validation accuracy |")
        assert lines[1] == "| --- |" + " ---: |" * 10
        assert lines[2].startswith("| c | 1 | 1.000 | 30.00% | 45.00% |")
        assert lines[3].startswith("| a | 1, 2 | 1.750 ± 0.354 |")
        assert lines[4].startswith("| a | 1 | 1.500 |")
        assert len({line.count("|") for line in lines}) == 1
        refused = """navigator.clipboard.writeText = async () => { throw new Error("not from the disk"); };
          document.getElementById("copy").click();
          await new Promise(done => setTimeout(done, 50));
          const area = document.getElementById("markdown");
          return [area.hidden, area.value.slice(0, 10), document.getSelection().toString().slice(0, 10)];"""
        assert page(refused) == [False, "| config |", "| config |"]
