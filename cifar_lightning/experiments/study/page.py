"""`report.html`: a study on one page, in one file that opens from the disk with no network."""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cifar_lightning.experiments.study.results import COLUMNS, Result, Statistic, summarize
from cifar_lightning.files import write_whole

#: What is left out of the page, because its own chart says it.
REDUNDANT = {"learning_curves.png"}


def write_page(results: Sequence[Result], first: str, out: Path, command: str) -> None:
    """Write `report.html`: plotly's library, the results as JSON, and the page that shows them.

    Args:
        results: At least one.
        first: Name of the study's first config.
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
    return {
        "dataSets": list(dict.fromkeys(result.data_set for result in results)),
        "command": command,
        "columns": [{"name": name, "title": title} for name, (title, _) in COLUMNS.items()],
        "configs": [
            {
                "name": summary.config,
                "seeds": summary.seeds,
                "parameters": summary.parameters,
                "cells": {name: _cell(getattr(summary, name), spec) for name, (_, spec) in COLUMNS.items()},
            }
            for summary in summarize(results, first)
        ],
        "quantities": sorted(quantities, key=lambda name: (not name.startswith("val_"), name)),
        "runs": [
            {
                "config": result.config,
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


def _cell(statistic: Statistic, spec: str) -> dict[str, Any]:
    return {"text": statistic.format(spec), "value": _finite(statistic.mean)}


def _finite(value: float) -> float | None:
    """The value, or None, since JSON knows no NaN."""
    return value if math.isfinite(value) else None
