"""What shows a study: `curves.png`, and `report.html`, one file that opens from the disk with no network."""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cifar_lightning.experiments.results import COLUMNS, Result, summarize, used_columns
from cifar_lightning.files import write_whole
from cifar_lightning.style import beside, look, new_picture, percent_axis, plain_axis, save, style, whole_axis

#: What is left out of the page, because its own chart says it.
REDUNDANT = {"learning_curves.png"}


def write_page(results: Sequence[Result], first: str, out: Path, command: str) -> None:
    """Write `report.html`: plotly's library, the results as JSON, and the page that shows them.

    Args:
        results: At least one.
        first: The name that all others are compared with.
        out: The study's folder.
        command: What the study was started by.
    """
    from plotly.offline import get_plotlyjs

    page = files("cifar_lightning.experiments.study").joinpath("page.html").read_text()
    # Nothing in a script element must look like markup.
    data = json.dumps(_data(results, first, out, command), allow_nan=False).replace("<", "\\u003c")
    page = page.replace("/*PLOTLY*/", get_plotlyjs()).replace("/*DATA*/", data)
    write_whole(out / "report.html", page.encode())


def _data(results: Sequence[Result], first: str, out: Path, command: str) -> dict[str, Any]:
    quantities = [name for name in results[0].best if name not in ("epoch", "seconds")]
    summaries = summarize(results, first)
    columns = used_columns(summaries, COLUMNS)
    return {
        "dataSets": list(dict.fromkeys(result.data_set for result in results)),
        "command": command,
        "columns": [{"name": name, "title": COLUMNS[name][0]} for name in columns],
        "configs": [
            {
                "name": summary.name,
                "seeds": summary.seeds,
                "parameters": summary.parameters,
                "cells": {
                    name: {"text": summary.cell(name), "value": _finite(summary.statistics[name].mean)}
                    for name in columns
                },
            }
            for summary in summaries
        ],
        "quantities": sorted(quantities, key=lambda name: (not name.startswith("val_"), name)),
        "runs": [
            {
                "config": result.name,
                "seed": result.seed,
                "best": result.best["epoch"],
                "rows": [{name: _finite(value) for name, value in row.items()} for row in result.rows],
                "pictures": {
                    path.stem.replace("_", " "): base64.b64encode(path.read_bytes()).decode()
                    for path in sorted((out / result.folder).glob("*.png"))
                    if path.name not in REDUNDANT
                },
            }
            for result in results
        ],
    }


def _finite(value: float) -> float | None:
    """The value, or None, since JSON knows no NaN."""
    return value if math.isfinite(value) else None


@style()
def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Draw validation loss and accuracy against the epoch: a line a run, a colour and line style a name."""
    names = list(dict.fromkeys(result.name for result in results))
    title = "Validation on " + ", ".join(dict.fromkeys(result.data_set for result in results))
    figure = new_picture(13, max(5, 1.2 + 0.2 * len(names)), title)
    for axes, quantity in zip(figure.subplots(1, 2), ("val_loss", "val_accuracy"), strict=True):
        for index, name in enumerate(names):
            for number, result in enumerate(result for result in results if result.name == name):
                rows = [row for row in result.validated if quantity in row]
                label = name if number == 0 else None
                points = [row["epoch"] for row in rows], [row[quantity] for row in rows]
                axes.plot(*points, marker="o" if len(rows) == 1 else "", linewidth=1.2, label=label, **look(index))
        axes.set_title(quantity.replace("val_", "validation "))
        whole_axis(axes, "epoch")
    loss, accuracy = figure.axes
    # A run that diverges, or starts from raw pixels, would press all others together.
    finite = sorted(row["val_loss"] for result in results for row in result.validated if math.isfinite(row["val_loss"]))
    if finite:
        loss.set_ylim(finite[0] - 0.05, max(finite[int(0.95 * (len(finite) - 1))], finite[0] + 0.1) + 0.05)
    plain_axis(loss)
    percent_axis(accuracy.yaxis)
    beside(accuracy, loss.get_legend_handles_labels()[0])
    save(figure, path)
