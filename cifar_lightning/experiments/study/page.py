"""`report.html`: a study on one page that opens from disk without a network."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from cifar_lightning.experiments.results import (
    COLUMNS,
    Result,
    Summary,
    best_loss_of,
    by_name,
    summarize,
    used_columns,
)
from cifar_lightning.experiments.study.curves import Band, elapsed
from cifar_lightning.files import write_whole
from cifar_lightning.style import DPI, SCREEN_DPI, look, shorten

#: Prefixes of metric names, in words.
SPLITS = {"val_": "validation ", "train_": "training ", "test_": "test "}
#: plotly's names for matplotlib's line styles.
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}


def write_page(results: Sequence[Result], first: str, out: Path, command: str) -> None:
    """Write `report.html`: plotly's library, the results as JSON, and the page that shows them.

    Args:
        results: At least one result.
        first: The name that all others are compared with.
        out: The study's folder.
        command: The command that started the study.
    """
    from plotly.offline import get_plotlyjs

    # Nothing in a script element must look like markup.
    data = json.dumps(_data(results, first, out, command), allow_nan=False).replace("<", "\\u003c")
    parts = {"STYLE": _read("page.css"), "PLOTLY": get_plotlyjs(), "DATA": data, "SCRIPT": _read("page.js")}
    page = _read("page.html")
    for name, text in parts.items():
        page = page.replace(f"/*{name}*/", text)
    write_whole(out / "report.html", page.encode())


def _read(name: str) -> str:
    return files("cifar_lightning.experiments.study").joinpath(name).read_text()


def _data(results: Sequence[Result], first: str, out: Path, command: str) -> dict[str, Any]:
    quantities = sorted(
        (name for name in results[0].best if name not in ("epoch", "seconds")),
        key=lambda name: (not name.startswith("val_"), "loss" not in name, name),
    )
    summaries = summarize(results, first)
    columns = used_columns(summaries, COLUMNS)
    loss = best_loss_of(first, results)
    return {
        "dataSets": list(dict.fromkeys(result.data_set for result in results)),
        "command": command,
        "columns": [
            {
                "name": name,
                "title": COLUMNS[name].title.replace("the first's", f"{shorten(first, 16)}'s"),
                "meaning": COLUMNS[name].meaning.replace("the first config", first),
            }
            for name in columns
        ],
        "configs": [
            {
                "name": summary.name,
                "seeds": summary.seeds,
                "parameters": summary.parameters,
                "cells": _cells(summary, columns),
                "bands": {name: asdict(Band.of(by_name(results)[summary.name], name)) for name in quantities},
                **_look(index),
            }
            for index, summary in enumerate(summaries)
        ],
        "quantities": [{"name": name, "title": _title(name), "share": "accuracy" in name} for name in quantities],
        "runs": [
            {
                "config": result.name,
                "seed": result.seed,
                "folder": quote(result.folder) + "/",
                "best": result.best["epoch"],
                "cells": _cells(Summary.of([result], loss), columns),
                "epochs": [row["epoch"] for row in result.rows],
                "seconds": elapsed(result),
                "curves": {name: [_finite(row.get(name, math.nan)) for row in result.rows] for name in quantities},
                "pictures": _pictures(out / result.folder),
            }
            for result in results
        ],
    }


def _cells(summary: Summary, columns: Sequence[str]) -> dict[str, Any]:
    """The text of each column, and the number that it is sorted by."""
    return {name: {"text": summary.cell(name), "value": _finite(summary.statistics[name].mean)} for name in columns}


def _look(index: int) -> dict[str, str]:
    """The colour and the line of a config, as in curves.png."""
    looks = look(index)
    return {"colour": looks["color"], "dash": DASHES[looks["linestyle"]]}


def _title(quantity: str) -> str:
    """A metric's name in words."""
    for beginning, words in SPLITS.items():
        quantity = quantity.replace(beginning, words)
    return "learning rate" if quantity == "lr" else quantity.replace("_", " ")


def _pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """A run's plots, learning curves first: the file, and the image as WebP, which is a third of the size."""
    pictures = {}
    for path in sorted(folder.glob("*.png"), key=lambda path: (path.stem != "learning_curves", path.stem)):
        file = io.BytesIO()
        with Image.open(path) as picture:
            picture.save(file, "webp", lossless=True)
            width, height = (pixels * SCREEN_DPI // DPI for pixels in picture.size)
        pictures[path.stem.replace("_", " ")] = {
            "file": quote(path.name),
            "image": base64.b64encode(file.getvalue()).decode(),
            "width": width,
            "height": height,
        }
    return pictures


def _finite(value: float) -> float | None:
    """The value, or None, since JSON has no NaN."""
    return value if math.isfinite(value) else None
