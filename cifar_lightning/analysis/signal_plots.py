"""Plots of the signals in a network: activations and gradients by layer and epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_lightning.analysis.signals import LayerSignal
from cifar_lightning.style import BLACK, GREY, SEQUENCE, log_axis, new_picture, plain_axis, save, style, whole_axis

#: Figures of a layer in an epoch, by name.
Row = Mapping[str, float]

#: Up to so many epochs the colour scale has a step for each.
STEPS = 12


def plot_signals(
    signals: Sequence[LayerSignal] | Mapping[int, Sequence[LayerSignal]], title: str = "Signals"
) -> Figure:
    """Plot the result of `measure_signals`. A notebook displays the returned figure.

    Args:
        signals: A signal for each layer, or a mapping from epochs to such lists, with 0 for the initialization.
        title: The figure's title.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP, measure_signals, plot_signals
        >>> network = DeepMLP(in_features=12, num_classes=3, hidden_sizes="4x16")
        >>> signals = measure_signals(network, network.hidden, torch.randn(50, 12), torch.arange(50) % 3)
        >>> plot_signals(signals).savefig("signals.png")
    """
    by_epoch = signals if isinstance(signals, Mapping) else {0: signals}
    rows = [
        {"epoch": float(epoch), "layer": float(layer), **asdict(signal)}
        for epoch, measured in by_epoch.items()
        for layer, signal in enumerate(measured, 1)
    ]
    return draw_signals(rows, title=title, layers="measured layer")


@style()
def draw_signals(
    rows: Sequence[Row],
    path: Path | None = None,
    title: str = "Signals",
    layers: str = "layer (0: input, last: logits)",
) -> Figure:
    """Draw each quantity against the layer, a line an epoch; `input_share` only if there is dropout.

    Args:
        rows: One a layer and epoch, with "epoch" (0 is the initialization), "layer" (0 is the input, the last one the
            logits), and the fields of its `LayerSignal`.
        path: The file to write, if any.
        title: The figure's title.
        layers: What the layers' numbers mean.
    """
    dropout = any(row["input_share"] != 1 for row in rows)
    epochs = sorted({row["epoch"] for row in rows})
    trained = [epoch for epoch in epochs if epoch]
    scale = _scale(trained)
    colours = {epoch: SEQUENCE(scale(epoch)) if epoch else BLACK for epoch in epochs}
    figure = new_picture(12.5 if dropout else 9, 6.4, title)
    grid = figure.subplots(2, 3 if dropout else 2, squeeze=False, sharex=True)
    quantities = [name for name in rows[0] if name not in ("epoch", "layer")]
    places = (grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1], *grid[0, 2:])
    for quantity, axes in zip(quantities, places, strict=False):
        _draw_signal(axes, rows, quantity, colours)
    for axes in (*grid[1, :2], *grid[0, 2:]):
        whole_axis(axes, layers)
        axes.tick_params(labelbottom=True)
    if dropout:
        grid[1, 2].axis("off")
    if trained:
        bar = figure.colorbar(ScalarMappable(scale, SEQUENCE), ax=grid, label="epoch", aspect=30)
        if len(trained) <= STEPS:
            bar.set_ticks(trained, labels=[f"{epoch:.0f}" for epoch in trained])
        else:
            bar.locator = MaxNLocator(integer=True)
        bar.minorticks_off()
    if 0 in epochs:
        figure.legend(handles=grid[0, 0].lines[:1], loc="outside lower center")
    save(figure, path)
    return figure


def _scale(epochs: Sequence[float]) -> Normalize:
    """Where an epoch stands between the first and the last: steps of equal width for a few, else in proportion."""
    if not 1 < len(epochs) <= STEPS:
        return Normalize(*((epochs[0], max(epochs[-1], epochs[0] + 1)) if epochs else (0, 1)))
    middles = [(a + b) / 2 for a, b in pairwise(epochs)]
    first, last = epochs[0] - (middles[0] - epochs[0]), epochs[-1] + (epochs[-1] - middles[-1])
    return BoundaryNorm([first, *middles, last], SEQUENCE.N)


def _draw_signal(axes: Axes, rows: Sequence[Row], quantity: str, colours: Mapping[float, Any]) -> None:
    for epoch, colour in colours.items():
        layers, values = zip(*((row["layer"], row[quantity]) for row in rows if row["epoch"] == epoch), strict=True)
        looks = {"linewidth": 1.2} if epoch else {"linewidth": 2, "linestyle": "--", "zorder": 3}
        label = f"epoch {epoch:.0f}" if epoch else "initialization"
        axes.plot(layers, values, marker="o", markersize=2.5, color=colour, label=label, **looks)
    axes.set_title(quantity.replace("_", " ").replace("std", "standard deviation"))
    finite = [row[quantity] for row in rows if isfinite(row[quantity])]
    if not finite:
        axes.text(0.5, 0.5, "no value was finite", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
        return
    positive = [value for value in finite if value > 0]
    if quantity.endswith("std") and positive and max(positive) > 10 * min(positive):
        log_axis(axes)
    else:
        plain_axis(axes)
