import json
import math
import re
import shutil
import subprocess

import pytest
from conftest import make_result as result
from conftest import make_row as row
from matplotlib.axes import Axes
from PIL import Image

from cifar_lightning.experiments.results import Result
from cifar_lightning.experiments.study.page import draw_curves, write_page


def test_curves_are_drawn_with_what_is_not_finite_left_out(tmp_path, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **kwargs: drawn.append(args) or plot(self, *args, **kwargs))
    draw_curves([result("a", 1), result("c", 1, (math.nan, math.nan))], tmp_path / "curves.png")
    assert drawn[0] == ([1.0, 2.0, 3.0], [2.0, 1.5, 1.8])
    assert drawn[2] == ([1.0, 2.0, 3.0], [0.3, 0.4, 0.5])
    assert Image.open(tmp_path / "curves.png").size == (2600, 1000)  # 13 x 5 inches


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
    write_page(some, "a", tmp_path, "cifar-lightning study </script><!-- a")
    text = (tmp_path / "report.html").read_text()
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    page = json.loads(data)
    assert "<" not in data
    assert page["command"] == "cifar-lightning study </script><!-- a"
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
    write_page(some, "a", tmp_path, "cifar-lightning study </script> a b c")
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


def test_epochs_without_a_validation_are_gaps(tmp_path):
    rows = [row(1.0, 2.0), row(2.0, 1.0)]
    del rows[0]["val_loss"], rows[0]["val_accuracy"]
    some = Result("a", 1, "synthetic", 1, "a/seed_1", rows)
    draw_curves([some], tmp_path / "curves.png")
    write_page([some], "a", tmp_path, "cifar-lightning study a")
    assert '"val_loss": 1.0' in (tmp_path / "report.html").read_text()
