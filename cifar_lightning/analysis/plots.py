"""Every picture of one network: of its training, its learning rate, its signals, its evaluation and its predictions."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from cifar_lightning.optim.lr_range_test import LRSweep
from cifar_lightning.optim.lr_rules import Rule

DPI = 120
GRID_ALPHA = 0.3

#: Figures by name, of an epoch or of a layer in an epoch.
Row = Mapping[str, float]


def draw_learning_curves(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw loss, accuracy and learning rate against the epoch.

    Args:
        rows: One an epoch, with "epoch", "lr" and what is known of the losses and accuracies of "train" and "val", as
            in "val_loss".
        path: The file to write.
        title: The figure's title.
    """
    figure = _new_figure(12, 3.8, title)
    for axes, quantity in zip(figure.subplots(1, 3), ("loss", "accuracy", "lr"), strict=True):
        names = ["lr"] if quantity == "lr" else [f"train_{quantity}", f"val_{quantity}"]
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                label = {"train": "training", "val": "validation"}.get(name.partition("_")[0])
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(title={"lr": "learning rate"}.get(quantity, quantity), xlabel="epoch")
        axes.grid(alpha=GRID_ALPHA)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if quantity == "lr":
            axes.set_ylim(bottom=0)
        elif axes.lines:  # another module than ours may log no accuracy
            axes.legend()
    figure.savefig(path, dpi=DPI)


def draw_schedule(rates: Sequence[float], momenta: Sequence[float], epochs: Sequence[float], path: Path) -> None:
    """Draw rate and, if it moves, momentum against the epoch.

    Args:
        rates: The learning rate of each step.
        momenta: The momentum of each step.
        epochs: When each step is made, in epochs from the beginning.
        path: The file to write.
    """
    figure = _new_figure(8, 4)
    axes = figure.subplots()
    axes.plot(epochs, rates, color="C0")
    axes.set(xlabel="epoch", ylabel="learning rate", title="Schedule", ylim=(0, None))
    axes.grid(alpha=GRID_ALPHA)
    if len(set(momenta)) > 1:
        twin = axes.twinx()
        twin.plot(epochs, momenta, color="C1")
        twin.set_ylabel("momentum", color="C1")
    figure.savefig(path, dpi=DPI)


def draw_sweep(sweep: LRSweep, suggestions: Mapping[str, float], path: Path, rule: Rule, title: str) -> None:
    """Draw the losses of a learning-rate range test against the rate, with every suggestion.

    Args:
        sweep: The rates and losses.
        suggestions: The suggested rate, by rule.
        path: The file to write.
        rule: The rule whose suggestion is taken.
        title: The figure's title.
    """
    figure = _new_figure(8, 5)
    axes = figure.subplots()
    axes.plot(sweep.lrs, sweep.losses, color="lightgrey", label="loss of each step")
    axes.plot(sweep.lrs, sweep.smoothed, color="black", label="smoothed")
    for index, (name, lr) in enumerate(suggestions.items()):
        nearest = min(range(len(sweep.lrs)), key=lambda i: abs(sweep.lrs[i] - lr))
        label = f"{name}: {lr:.2e}" + (" (taken)" if name == rule else "")
        size = 13 if name == rule else 8
        axes.plot(lr, sweep.smoothed[nearest], "o", markersize=size, color=f"C{index}", label=label)
        axes.axvline(lr, color=f"C{index}", linewidth=0.8, linestyle=":")
    finite = [loss for loss in sweep.smoothed if isfinite(loss)]
    if finite:
        low, high = min(finite), min(max(finite), 2 * finite[0])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title=title)
    axes.grid(alpha=GRID_ALPHA)
    axes.legend()
    figure.savefig(path, dpi=DPI)


def draw_signals(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw each quantity against the layer, a line an epoch; `input_share` only if there is dropout.

    Args:
        rows: One a layer and epoch, with "epoch" (0 is the initialization), "layer" (0 is the input, the last one the
            logits), and the fields of its `LayerSignal`.
        path: The file to write.
        title: The figure's title.
    """
    dropout = any(row["input_share"] != 1 for row in rows)
    epochs = sorted({row["epoch"] for row in rows})
    colours, scale = colormaps["viridis"], Normalize(1, max(2, epochs[-1]))
    figure = _new_figure(12 if dropout else 8, 6.5, title)
    grid = figure.subplots(2, 3 if dropout else 2, squeeze=False)
    quantities = [name for name in rows[0] if name not in ("epoch", "layer")]
    places = (grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1], *grid[0, 2:])
    for quantity, axes in zip(quantities, places, strict=False):
        _draw_signal(axes, rows, quantity, {epoch: colours(scale(epoch)) if epoch else "black" for epoch in epochs})
    if dropout:
        grid[1, 2].axis("off")
    if len(epochs) > 1:
        figure.colorbar(ScalarMappable(scale, colours), ax=grid, label="epoch", ticks=MaxNLocator(integer=True))
    figure.savefig(path, dpi=DPI)


def _draw_signal(axes: Axes, rows: Sequence[Row], quantity: str, colours: Mapping[float, Any]) -> None:
    for epoch, colour in colours.items():
        layers, values = zip(*((row["layer"], row[quantity]) for row in rows if row["epoch"] == epoch), strict=True)
        label = f"epoch {epoch:.0f}" if epoch else "initialization"
        axes.plot(layers, values, marker=".", markersize=3, linewidth=1, color=colour, label=label)
    axes.set(title=quantity.replace("_", " "), xlabel="layer (0: the input, last: the logits)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=GRID_ALPHA)
    if quantity.endswith("std") and any(0 < row[quantity] < inf for row in rows):
        axes.set_yscale("log")
    if len(colours) == 1 or 0 in colours:
        axes.legend(handles=axes.lines[:1])


def draw_reliability(curves: Mapping[str, Mapping[str, Tensor]], path: Path, title: str) -> None:
    """Draw accuracy against confidence, and how many predictions have which confidence.

    Args:
        curves: What `Reliability` computes, by the name of the way to predict.
        path: The file to write.
        title: The figure's title.
    """
    figure = _new_figure(6, 6.5, title)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    for name, curve in curves.items():
        counts, confidence, accuracy = (curve[part].cpu().numpy() for part in ("counts", "confidence", "accuracy"))
        there = counts > 0
        axes.plot(confidence[there], accuracy[there], marker="o", markersize=4, label=name)
        below.plot(confidence[there], counts[there] / counts.sum(), marker=".", label=name)
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="confidence", ylabel="share", ylim=(0, None))
    axes.legend()
    for part in (axes, below):
        part.grid(alpha=GRID_ALPHA)
        part.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.savefig(path, dpi=DPI)


def draw_confusion_matrix(counts: Tensor, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw the share of each true class's images, a row, that are predicted as each class, a column.

    Args:
        counts: (K, K), integers.
        classes: The classes' names.
        path: The file to write.
        title: The figure's title.
    """
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    figure = _new_figure(7.5, 7, title)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, line in enumerate(shares.tolist()):
        for column, share in enumerate(line):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    figure.savefig(path, dpi=DPI)


def draw_images(
    images: Tensor,
    probabilities: Tensor,
    captions: Sequence[str],
    classes: Sequence[str],
    path: Path,
    title: str,
    std: Tensor | None = None,
) -> None:
    """Draw images, each beside bars of its probabilities.

    Args:
        images: (N, 3, 32, 32), uint8; floats are drawn from their least to their greatest value, each image by itself.
        probabilities: (N, K).
        captions: A line above each image.
        classes: The classes' names.
        path: The file to write.
        title: The figure's title.
        std: (N, K), drawn as the bars' errors.
    """
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    figure = _new_figure(3.6 * columns, 1.9 * rows + 0.5, title)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 0.9] * columns)
    for axes in grid.flat[2 * len(images) :]:
        axes.axis("off")
    for index, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        picture, bars = grid.flat[2 * index], grid.flat[2 * index + 1]
        if image.is_floating_point():
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        picture.imshow(image.permute(1, 2, 0).cpu().numpy())
        picture.axis("off")
        picture.set_title(captions[index], fontsize=8)
        _draw_bars(bars, row.tolist(), classes, None if std is None else std[index].tolist())
    figure.savefig(path, dpi=DPI)


def _draw_bars(axes: Axes, probabilities: list[float], classes: Sequence[str], std: list[float] | None) -> None:
    best = probabilities.index(max(probabilities))
    colours = ["tab:orange" if k == best else "tab:blue" for k in range(len(classes))]
    axes.barh(range(len(classes)), probabilities, color=colours, xerr=std, error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(classes)), classes, fontsize=5.5)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(f"{classes[best]} {probabilities[best]:.0%}", fontsize=8)


def _new_figure(width: float, height: float, title: str | None = None) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    return figure
