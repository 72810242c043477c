"""Learning curves of a single run, or of all runs of a sweep."""

import re
from collections.abc import Mapping, Sequence
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cifar_lightning.style import (
    BLACK,
    GREY,
    LINE_STYLES,
    SEQUENCE,
    TRAINING,
    VALIDATION,
    beside,
    log_axis,
    look,
    new_picture,
    percent_axis,
    plain_axis,
    save,
    shorten,
    style,
    whole_axis,
)

#: Results of an epoch by name: "epoch", counted from 1, "lr", and metrics such as "val_loss".
Row = Mapping[str, float]

#: Curves with at most this many points have a marker at each.
MARKED = 30
#: Losses that span more than this factor are drawn on a logarithmic scale.
WIDE = 30.0
#: The most runs of a sweep that the legend lists.
NAMED = 20


def best_epoch(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest validation loss, where NaN counts as highest; None if no row has one."""
    validated = [row for row in rows if "val_loss" in row]
    return min(validated, key=lambda row: (isnan(row["val_loss"]), row["val_loss"]), default=None)


@style()
def draw_learning_curves(
    rows: Sequence[Row],
    path: Path | None = None,
    title: str = "Learning curves",
    rates: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draw loss, accuracy and learning rate by epoch, and mark the epoch with the lowest validation loss.

    Args:
        rows: One per epoch, with "epoch", "lr" (at its end) and, where known, "train_loss", "train_accuracy",
            "val_loss" and "val_accuracy".
        path: File to write; None writes none.
        title: The figure's title.
        rates: Pairs of time, in (fractional) epochs since the start of training, and the learning rate from then on.
    """
    figure = new_picture(12, 3.9, title)
    loss, accuracy, rate = figure.subplots(1, 3, sharex=True)
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        axes.set_title(quantity)
        for split, label, colour in (("train", "training", TRAINING), ("val", "validation", VALIDATION)):
            points = [(row["epoch"], row[name]) for row in rows if (name := f"{split}_{quantity}") in row]
            if points:
                _draw_curve(axes, points, color=colour, label=label)
        _say_if_empty(axes)
    _scale_loss(loss)
    percent_axis(accuracy.yaxis)
    _draw_rate(rate, rows, rates)
    for axes in (loss, accuracy, rate):
        whole_axis(axes, "epoch")
    best = best_epoch(rows)
    if best is not None and isfinite(best["val_loss"]):
        _mark_best((loss, accuracy, rate), best)
    handles = {str(line.get_label()): line for axes in (loss, accuracy) for line in axes.lines}
    handles = {label: line for label, line in handles.items() if not label.startswith("_")}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    save(figure, path)
    return figure


def _draw_curve(axes: Axes, points: Sequence[tuple[float, float]], **looks: Any) -> None:
    marker = "o" if len(points) <= MARKED else ""
    axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, **looks)


def _values(axes: Axes) -> list[float]:
    """The y values of all lines."""
    return [float(value) for line in axes.lines for value in np.asarray(line.get_ydata(), dtype=float)]


def _say_if_empty(axes: Axes) -> None:
    values = _values(axes)
    if not any(map(isfinite, values)):
        text = "no value was finite" if values else "not measured"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])


def _scale_loss(axes: Axes) -> None:
    """Choose a scale on which all losses can be distinguished, even if training diverged."""
    values = _values(axes)
    finite = [value for value in values if isfinite(value)]
    if finite and max(finite) > WIDE * min(finite) > 0:
        log_axis(axes)
    elif finite:
        plain_axis(axes)


def _draw_rate(axes: Axes, rows: Sequence[Row], rates: Sequence[tuple[float, float]]) -> None:
    """Draw the learning rate as steps: each value holds until the next known one."""
    points = sorted(({row["epoch"]: row["lr"] for row in rows if "lr" in row} | dict(rates)).items())
    axes.set_title("learning rate")
    if points:
        looks: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) == 1 else {"drawstyle": "steps-post"}
        axes.plot(*zip(*points, strict=True), color=BLACK, label="_rate", **looks)
        axes.set_ylim(0, 1.05 * max(rate for _, rate in points) or None)  # keeps a constant rate off the edge
    axes.set_xlim(left=0)
    plain_axis(axes)


def _mark_best(panels: Sequence[Axes], best: Row) -> None:
    for axes, quantity in zip(panels, ("val_loss", "val_accuracy", ""), strict=True):
        axes.axvline(best["epoch"], color=GREY, linewidth=1, linestyle=":", label="_best", zorder=1)
        if quantity in best:
            label = f"lowest validation loss: {best['val_loss']:.4g} in epoch {best['epoch']:.0f}"
            axes.plot(
                best["epoch"], best[quantity], "*", markersize=13, color=VALIDATION,
                markeredgecolor=BLACK, markeredgewidth=0.8, label=label, zorder=4,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- sweeps


@style()
def draw_sweep_curves(curves: Mapping[str, Sequence[Row]], path: Path | None = None, title: str = "Sweep") -> Figure:
    """Draw validation loss and accuracy of several runs in one picture; darker lines have lower learning rates.

    Runs with the same rate, such as different seeds, share a colour and differ in line style. If the name of any run
    contains no rate, each has its own colour. The run with the lowest validation loss is marked. With many runs, the
    legend lists only the best.

    Args:
        curves: The rows of each run, as in `draw_learning_curves`, keyed by names like "lr=0.01" or "seed=1_lr=0.01".
        path: File to write; None writes none.
        title: The figure's title.
    """
    names = sorted(curves, key=lambda name: (_rate(name), list(curves).index(name)))
    ranking = sorted(names, key=lambda name: _lowest(curves[name]))
    named, looks = ranking[:NAMED], _looks(names)
    figure = new_picture(12, max(4.2, 1.2 + 0.2 * min(len(names), NAMED + 1)), title)
    loss, accuracy = figure.subplots(1, 2, sharex=True)
    for axes, quantity in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        axes.set_title(quantity.replace("val_", "validation "))
        for name in names:
            points = [(row["epoch"], row[quantity]) for row in curves[name] if quantity in row]
            if points:
                width = 2.6 if name == ranking[0] else 1.3
                _draw_curve(axes, points, label=name, linewidth=width, **looks[name])
        _say_if_empty(axes)
        whole_axis(axes, "epoch")
        axes.set_xlim(left=0)
    _scale_loss(loss)
    percent_axis(accuracy.yaxis)
    best = best_epoch(curves[ranking[0]]) if ranking else None
    if best is not None and isfinite(best["val_loss"]):
        _mark_best_run((loss, accuracy), best, looks[ranking[0]]["color"])
    mark: dict[str, Any] = {"marker": "*", "markersize": 11, "markeredgecolor": BLACK}
    handles = [
        Line2D([], [], label=_label(name, curves[name]), **looks[name], **(mark if name == ranking[0] else {}))
        for name in names
        if name in named
    ]
    if len(names) > NAMED:
        handles.append(Line2D([], [], linestyle="", label=f"and {len(names) - NAMED} more with a higher loss"))
    beside(accuracy, handles, "lowest validation loss")
    save(figure, path)
    return figure


def _rate(name: str) -> float:
    """The learning rate in a run's name, such as "lr=0.01" or "schedule.max_lr=1e-2"; infinity if there is none."""
    found = re.search(r"(?:^|[^a-zA-Z])lr=(\d*\.?\d+(?:e[+-]?\d+)?)", name, re.IGNORECASE)
    return float(found[1]) if found else inf


def _lowest(rows: Sequence[Row]) -> float:
    best = best_epoch(rows)
    return best["val_loss"] if best is not None and not isnan(best["val_loss"]) else inf


def _label(name: str, rows: Sequence[Row]) -> str:
    lowest = _lowest(rows)
    return f"{lowest:.4f}  {shorten(name, 40)}" if isfinite(lowest) else f"none     {shorten(name, 40)}"


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour the runs by rate, and tell those with the same rate apart by line style."""
    rates = sorted({_rate(name) for name in names})
    if inf in rates or len(rates) == 1:
        return {name: look(index) for index, name in enumerate(names)}
    looks: dict[str, dict[str, Any]] = {}
    for rate in rates:
        colour = SEQUENCE(rates.index(rate) / (len(rates) - 1))
        for index, name in enumerate(name for name in names if _rate(name) == rate):
            looks[name] = {"color": colour, "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
    return looks


def _mark_best_run(panels: Sequence[Axes], best: Row, colour: Any) -> None:
    for axes, quantity in zip(panels, ("val_loss", "val_accuracy"), strict=True):
        if quantity in best:
            axes.plot(
                best["epoch"], best[quantity], "*", markersize=14, color=colour,
                markeredgecolor=BLACK, markeredgewidth=0.8, label="_best", zorder=4,
            )  # fmt: skip
