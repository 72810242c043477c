"""Plots of a search: its history, the metric by parameter, all parameters at once, and their importances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cifar_lightning.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT_GREY,
    SEQUENCE,
    VERMILLION,
    PlainFormatter,
    beside,
    new_picture,
    percent_axis,
    plain,
    plain_axis,
    save,
    shorten,
    style,
    whole_axis,
)

#: The files: the metric of each trial, by parameter, all parameters at once, and the share of each.
PICTURES = ("optimization_history.png", "slice.png", "parallel_coordinate.png", "param_importances.png")
#: Panels in a row of slice.png.
IN_A_ROW = 4
#: Room of a trial's mark and of an axis's name, in inches.
PANEL = 3.2


@dataclass(frozen=True)
class Scale:
    """A parameter's values on an axis from 0 to 1, from the least that was drawn to the largest.

    Args:
        places: Where each trial lies.
        ticks: Where labels are.
        labels: What they say.
    """

    places: list[float]
    ticks: list[float]
    labels: list[str]

    @classmethod
    def of(cls, values: Sequence[Any], distribution: BaseDistribution) -> "Scale":
        """Of what was drawn of a distribution, at least one value."""
        if isinstance(distribution, CategoricalDistribution):
            known = [value for value in distribution.choices if value in values]
            places = {str(value): (i + 0.5) / len(known) for i, value in enumerate(known)}
            return cls([places[str(value)] for value in values], list(places.values()), list(places))
        is_log = bool(getattr(distribution, "log", False))
        low, high = min(values), max(values)
        if is_log:
            ticks = LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)).tick_values(low, high)
        else:
            ticks = MaxNLocator(5, integer=isinstance(distribution, IntDistribution)).tick_values(low, high)
        inside = [float(tick) for tick in ticks if low <= tick <= high] or [low]

        def place(value: float) -> float:
            if low == high:
                return 0.5
            return math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)

        return cls([place(value) for value in values], [place(tick) for tick in inside], [plain(t) for t in inside])


class Drawn:
    """What of a study is drawn: the trials that have a finite value.

    Args:
        study: The study.
        metric: What is searched by, such as "val_loss".
    """

    def __init__(self, study: Study, metric: str) -> None:
        every = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self.trials = [t for t in every if t.values and math.isfinite(t.values[0])]
        self.complete = [t for t in self.trials if t.state == TrialState.COMPLETE]
        self.pruned = [t for t in self.trials if t.state == TrialState.PRUNED]
        self.better = max if study.direction == StudyDirection.MAXIMIZE else min
        self.best = self.better(self.complete, key=_value)
        self.metric, self.label = metric, metric.replace("val_", "validation ")
        self.names = list(self.best.params)

    def scale(self, name: str, trials: Sequence[FrozenTrial]) -> Scale:
        """The values of a parameter in some of the trials."""
        return Scale.of([trial.params[name] for trial in trials], self.best.distributions[name])

    def write_values(self, axes: Axes) -> None:
        """Write the metric at the y axis."""
        if "accuracy" in self.metric:
            percent_axis(axes.yaxis)
        else:
            plain_axis(axes)


def _value(trial: FrozenTrial) -> float:
    return float(trial.values[0])


_BEST: dict[str, Any] = {"marker": "*", "markersize": 14, "color": VERMILLION, "markeredgecolor": BLACK, "zorder": 4}


def draw_search(study: Study, metric: str, folder: Path) -> None:
    """Draw all pictures of a study with a complete trial into a folder."""
    drawn = Drawn(study, metric)
    history, slices, parallel, importances = (folder / name for name in PICTURES)
    draw_history(drawn, history)
    draw_slices(drawn, slices)
    draw_parallel(drawn, parallel)
    if len(drawn.complete) > 1:
        draw_importances(get_param_importances(study), drawn.label, importances)


@style()
def draw_history(drawn: Drawn, path: Path | None = None) -> Figure:
    """Draw the metric of each trial in their order, and the best so far."""
    figure = new_picture(8, 4, f"Search: {drawn.label} of each trial")
    axes = figure.subplots()
    numbers = [trial.number for trial in drawn.complete]
    so_far = list(accumulate(map(_value, drawn.complete), drawn.better))
    axes.plot([*numbers, drawn.trials[-1].number], [*so_far, so_far[-1]], drawstyle="steps-post", color=LIGHT_GREY,
              label="best so far", zorder=1)  # fmt: skip
    axes.plot(numbers, [*map(_value, drawn.complete)], "o", color=BLUE, label="complete")
    if drawn.pruned:
        pruned = [trial.number for trial in drawn.pruned], [*map(_value, drawn.pruned)]
        axes.plot(*pruned, "x", color=GREY, label="pruned, where it was")
    axes.plot(drawn.best.number, _value(drawn.best), linestyle="", label=f"best: trial {drawn.best.number}", **_BEST)
    whole_axis(axes, "trial")
    axes.set_ylabel(drawn.label)
    drawn.write_values(axes)
    beside(axes, axes.get_legend_handles_labels()[0])
    save(figure, path)
    return figure


@style()
def draw_slices(drawn: Drawn, path: Path | None = None) -> Figure:
    """Draw the metric of each complete trial against each parameter; later trials are paler."""
    columns = min(IN_A_ROW, len(drawn.names))
    rows = math.ceil(len(drawn.names) / columns)
    figure = new_picture(max(6.0, PANEL * columns + 1), PANEL * rows + 0.6, f"Search: {drawn.label} by parameter")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    values, numbers = [*map(_value, drawn.complete)], [trial.number for trial in drawn.complete]
    for axes, name in zip(panels, drawn.names, strict=False):
        scale = drawn.scale(name, drawn.complete)
        axes.scatter(scale.places, values, c=numbers, cmap=SEQUENCE, s=36, edgecolors="white", linewidths=0.5)
        axes.plot(scale.places[drawn.complete.index(drawn.best)], _value(drawn.best), **_BEST)
        slanted = sum(map(len, scale.labels)) > 24
        labels = [shorten(label, 20) for label in scale.labels]
        axes.set_xticks(scale.ticks, labels, rotation=30 if slanted else 0, ha="right" if slanted else "center")
        axes.set(xlim=(-0.06, 1.06), xlabel=shorten(name, 34))
        drawn.write_values(axes)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(drawn.label)
    used = list(figure.axes)[: len(drawn.names)]
    for axes in list(figure.axes)[len(drawn.names) :]:
        axes.remove()
    if len(numbers) > 1:
        bar = figure.colorbar(used[0].collections[0], ax=used, label="trial (★ the best)", aspect=30)
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
    save(figure, path)
    return figure


@style()
def draw_parallel(drawn: Drawn, path: Path | None = None) -> Figure:
    """Draw a line for each complete trial through all of its parameters and its metric, the best one on top."""
    names, trials = drawn.names, drawn.complete
    figure = new_picture(max(7.0, 1.8 * (len(names) + 1) + 1), 4.6, "Search: the parameters of each trial")
    axes = figure.subplots()
    scales = [drawn.scale(name, trials) for name in names]
    values = np.array([*map(_value, trials)])
    low, high = float(values.min()), float(values.max())
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    for trial, height, *places in zip(trials, heights, *(scale.places for scale in scales), strict=True):
        best = trial is drawn.best
        looks: dict[str, Any] = {"color": SEQUENCE(height), "linewidth": 1.2, "alpha": 0.8}
        if best:
            looks = {"color": VERMILLION, "linewidth": 2.6, "zorder": 3, "label": f"best: trial {trial.number}"}
        axes.plot(range(len(names) + 1), [*places, height], **looks)
    sign = 0.01 if "accuracy" in drawn.metric else 1.0
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high] or [low]
    of_values = [(tick - low) / (high - low) if high > low else 0.5 for tick in ticks]
    written = [plain(tick / sign, 4) + "%" * (sign != 1) for tick in ticks]
    for x, scale in enumerate([*scales, Scale([], of_values, written)]):
        axes.axvline(x, color=GREY, linewidth=0.8, zorder=1)
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            axes.annotate(
                shorten(label, 16), (x, tick), (4, 0), textcoords="offset points", va="center", fontsize=8.5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")], zorder=5,
            )  # fmt: skip
    axes.set_xticks(range(len(names) + 1), [shorten(name, 24) for name in (*names, drawn.label)])
    axes.set(yticks=[], xlim=(-0.1, len(names) + 0.5), ylim=(-0.05, 1.05))
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=9)
    figure.legend(loc="outside lower right")
    save(figure, path)
    return figure


@style()
def draw_importances(importances: dict[str, float], label: str, path: Path | None = None) -> Figure:
    """Draw what share of the metric's variance each parameter accounts for, the largest first."""
    figure = new_picture(7, 1.5 + 0.35 * len(importances), f"Search: importance of the parameters for the {label}")
    axes = figure.subplots()
    names = [shorten(name, 40) for name in importances]
    bars = axes.barh(names, list(importances.values()), color=BLUE)
    axes.bar_label(bars, [f"{share:.0%}" for share in importances.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12 * max(importances.values(), default=1) or 1), xlabel="share of the variance")
    axes.xaxis.set_major_formatter(PlainFormatter(0.01))
    axes.grid(visible=False, axis="y")
    save(figure, path)
    return figure
