"""Plots of learning rates: a range test with its suggestions, and a schedule."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from cifar_lightning.optim.lr_rules import Rule
from cifar_lightning.style import (
    BLACK,
    COLOURS,
    LIGHT_GREY,
    MARKERS,
    PURPLE,
    PlainFormatter,
    beside,
    log_ticks,
    new_picture,
    plain,
    plain_axis,
    save,
    style,
    whole_axis,
)

if TYPE_CHECKING:
    from cifar_lightning.optim.lr_range_test import LRSweep


@style()
def draw_sweep(
    sweep: LRSweep, rule: Rule = "valley", path: Path | None = None, title: str = "Learning-rate range test"
) -> Figure:
    """Plot the losses of a learning-rate range test against the rate, with each rule's suggestion.

    Args:
        sweep: The rates and losses. If nothing can be suggested, the plot says why.
        rule: The rule whose suggestion is highlighted.
        path: The file to write, if any.
        title: The figure's title.
    """
    figure = new_picture(10, 4.8, title)
    axes = figure.subplots()
    axes.plot(sweep.lrs, sweep.losses, color=LIGHT_GREY, linewidth=1, label="loss of each step")
    axes.plot(sweep.lrs, sweep.smoothed, color=BLACK, label="smoothed")
    try:
        suggestions, problem = sweep.suggestions(), ""
    except ValueError as error:
        suggestions, problem = {}, str(error).partition(":")[0]
    _mark_suggestions(axes, sweep, suggestions, rule)
    finite = [loss for loss in (*sweep.losses, *sweep.smoothed) if isfinite(loss)]
    if finite:  # showing losses of more than twice the first would squeeze the rest together
        low, high = min(finite), min(max(finite), finite[0] + abs(finite[0]))
        margin = 0.1 * (high - low) or 0.05 * abs(low) or 0.05
        axes.set_ylim(low - margin, high + margin)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    log_ticks(axes.xaxis)
    plain_axis(axes)
    beside(axes, axes.get_legend_handles_labels()[0], textwrap.fill(problem and f"no suggestion: {problem}", 26))
    save(figure, path)
    return figure


def _mark_suggestions(axes: Axes, sweep: LRSweep, suggestions: dict[str, float], rule: Rule) -> None:
    """Mark each suggestion on the smoothed loss, stacking those at about the same rate, with the chosen rule first."""
    near, drawn = 0.02 * log(sweep.lrs[-1] / sweep.lrs[0]), list[float]()
    for name in sorted(suggestions, key=lambda name: name != rule):
        lr, index, is_taken = suggestions[name], get_args(Rule).index(name), name == rule
        nearest = min(range(len(sweep.lrs)), key=lambda i: abs(sweep.lrs[i] - lr))
        above = sum(abs(log(lr / other)) < near for other in drawn)
        drawn.append(lr)
        axes.axvline(lr, color=COLOURS[index], linewidth=1, linestyle="-" if is_taken else ":", zorder=1)
        axes.plot(
            lr,
            sweep.smoothed[nearest],
            MARKERS[index],
            transform=offset_copy(axes.transData, axes.get_figure(root=True), y=0.17 * above),
            markersize=12 if is_taken else 8,
            color=COLOURS[index],
            markerfacecolor=COLOURS[index] if is_taken else "white",
            markeredgewidth=1.6,
            zorder=3,
            label=f"{name}: {plain(lr)}" + (" (taken)" if is_taken else ""),
        )


@style()
def draw_schedule(
    rates: Sequence[float],
    momenta: Sequence[float],
    epochs: Sequence[float],
    path: Path | None = None,
    title: str = "Schedule",
) -> Figure:
    """Plot the learning rate and, if it changes, the momentum against the step, with epochs along the top.

    Args:
        rates: The learning rate of each step.
        momenta: The momentum of each step; empty if there is none.
        epochs: Start of each step and end of the last one, in epochs since the start of training; increasing.
        path: The file to write, if any.
        title: The figure's title: the schedule and its length.
    """
    moves = len(set(momenta)) > 1
    figure = new_picture(8, 5.6 if moves else 4, title)
    panels = figure.subplots(1 + moves, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + moves])[:, 0]
    for axes, values, name, colour in zip(
        panels, (rates, momenta), ("learning rate", "momentum"), (BLACK, PURPLE), strict=False
    ):
        _draw_steps(axes, values, colour)
        axes.set_ylabel(name)
        plain_axis(axes)
    panels[0].set_ylim(bottom=0)
    whole_axis(panels[-1], "step")
    steps = range(len(epochs))
    above = panels[0].secondary_xaxis(
        "top", functions=(lambda step: np.interp(step, steps, epochs), lambda epoch: np.interp(epoch, epochs, steps))
    )
    above.set_xlabel("epoch")
    # A tick beyond the last epoch would be drawn at its end.
    ticks = MaxNLocator(integer=epochs[-1] >= 1).tick_values(epochs[0], epochs[-1])
    above.set_xticks([tick for tick in ticks if tick <= epochs[-1]])
    above.xaxis.set_major_formatter(PlainFormatter())
    save(figure, path)
    return figure


def _draw_steps(axes: Axes, values: Sequence[float], colour: str) -> None:
    """Plot a value that holds for a step each, the last one included: even a schedule of one step is a line."""
    axes.plot(range(len(values) + 1), [*values, values[-1]], drawstyle="steps-post", color=colour)
    axes.set_xlim(0, len(values))
