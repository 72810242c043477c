"""The learning curves of a study: for each config a band over its seeds, and `curves.png`, which draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from cifar_lightning.experiments.results import Result, by_name
from cifar_lightning.style import BLACK, beside, look, new_picture, percent_axis, plain_axis, save, style, whole_axis

#: Losses are cut off if they are this many times as far above the lowest as 95 % of all losses.
OUTLIER = 3


@dataclass(frozen=True)
class Band:
    """A quantity over the epochs in which all seeds of a config have a finite value.

    If one seed stops early, a mean over the others would jump, so the band ends there and each of the others continues
    as a line of its own (`tail`).

    Args:
        epochs: The epochs, counted from 1.
        seconds: Time since the start at each epoch, averaged over the seeds.
        mean: The mean over the seeds at each of the epochs.
        low: The lowest of the seeds.
        high: The highest of the seeds.
    """

    epochs: list[float]
    seconds: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, results: Sequence[Result], quantity: str) -> "Band":
        """Make the band of one config's results, at least one."""
        curves = [dict(curve(result, quantity)) for result in results]
        epochs = sorted(set.intersection(*map(set, curves)))
        times = [dict(zip((row["epoch"] for row in result.rows), elapsed(result), strict=True)) for result in results]
        values = [[points[epoch] for points in curves] for epoch in epochs]
        return cls(
            epochs=epochs,
            seconds=[mean(time[epoch] for time in times) for epoch in epochs],
            mean=[mean(each) for each in values],
            low=[min(each) for each in values],
            high=[max(each) for each in values],
        )

    def tail(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """One seed's points from the end of the band on; empty if there is nothing beyond it."""
        end = self.epochs[-1] if self.epochs else -math.inf
        tail = [point for point in points if point[0] >= end]
        return tail if tail and tail[-1][0] > end else []


def curve(result: Result, quantity: str) -> list[tuple[float, float]]:
    """Epoch and value wherever it was measured and is finite."""
    return [(row["epoch"], row[quantity]) for row in result.rows if math.isfinite(row.get(quantity, math.nan))]


def elapsed(result: Result) -> list[float]:
    """Seconds since the start, at each epoch's end."""
    return list(accumulate(row["seconds"] for row in result.rows))


@style()
def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Plot validation loss and accuracy by epoch: a line and a band for each config, with its best run marked."""
    groups = by_name(results)
    title = "Validation on " + ", ".join(dict.fromkeys(result.data_set for result in results))
    if len(results) > len(groups):
        title += ": mean and range over the seeds"
    figure = new_picture(13, max(5, 1.4 + 0.2 * len(groups)), title)
    loss, accuracy = figure.subplots(1, 2)
    for axes, quantity in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        for index, (name, group) in enumerate(groups.items()):
            _draw_band(axes, group, quantity, name, look(index))
        axes.set_title(quantity.replace("val_", "validation "))
        whole_axis(axes, "epoch")
    _leave_out_outliers(loss, results)
    plain_axis(loss)
    percent_axis(accuracy.yaxis)
    beside(accuracy, loss.get_legend_handles_labels()[0], "★ lowest loss of any seed")
    save(figure, path)


def _draw_band(axes: Axes, group: Sequence[Result], quantity: str, label: str, looks: dict[str, Any]) -> None:
    band = Band.of(group, quantity)
    axes.plot(band.epochs, band.mean, marker="o" if len(band.epochs) == 1 else "", label=label, **looks)
    if len(group) > 1:
        axes.fill_between(band.epochs, band.low, band.high, color=looks["color"], alpha=0.18, linewidth=0)
        for result in group:
            if tail := band.tail(curve(result, quantity)):
                axes.plot(*zip(*tail, strict=True), **(looks | {"linewidth": 0.8}))
    best = min((r.best for r in group), key=lambda row: row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf)
    if math.isfinite(best["val_loss"]) and quantity in best:
        axes.plot(
            best["epoch"], best[quantity], "*", markersize=12, color=looks["color"],
            markeredgecolor=BLACK, markeredgewidth=0.8, zorder=4,
        )  # fmt: skip


def _leave_out_outliers(axes: Axes, results: Sequence[Result]) -> None:
    """Limit the scale to almost all losses: diverging ones would squeeze the rest."""
    losses = sorted(loss for result in results for _, loss in curve(result, "val_loss"))
    if losses:
        low, most, high = losses[0], losses[int(0.95 * (len(losses) - 1))], losses[-1]
        axes.set_ylim(low - 0.05, max(low + 0.1, high if high - low < OUTLIER * (most - low) else most) + 0.05)
