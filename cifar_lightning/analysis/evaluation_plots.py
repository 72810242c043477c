"""Pictures of an evaluation: reliability diagrams and confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cifar_lightning.style import (
    GREY,
    MARKERS,
    TEXT,
    PlainFormatter,
    look,
    new_picture,
    percent_axis,
    save,
    shorten,
    style,
    widest,
)

#: With more classes than this, the cells of a confusion matrix are too small for numbers.
NUMBERED = 20
#: Inches: side of a cell with numbers, maximum side of the matrix.
CELL, MATRIX = 0.56, 13.0


@style()
def draw_reliability(
    curves: Mapping[str, Mapping[str, Tensor]], path: Path | None = None, title: str = "Reliability"
) -> Figure:
    """Draw accuracy against confidence, and a histogram of the confidences.

    Error bars are the standard error of the accuracy, which is large in bins with few predictions.

    Args:
        curves: Results of `Reliability`, keyed by the name of the prediction method.
        path: File to write; None writes none.
        title: The figure's title.
    """
    figure = new_picture(7, 7 + 0.2 * len(curves), title)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    for index, (name, curve) in enumerate(curves.items()):
        counts, confidence, accuracy = (curve[part].double().cpu() for part in ("counts", "confidence", "accuracy"))
        there, total = counts > 0, counts.sum().clamp(min=1)
        error = (counts * (accuracy - confidence).abs()).sum() / total
        spread = (accuracy * (1 - accuracy) / counts.clamp(min=1)).sqrt()
        axes.errorbar(
            confidence[there], accuracy[there], spread[there], **look(index), marker=MARKERS[index % len(MARKERS)],
            elinewidth=1, label=f"{shorten(name, 40)}: ECE {error:.3f}",
        )  # fmt: skip
        _draw_counts(below, counts.tolist(), index, len(curves))
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower center")
    percent_axis(axes.yaxis)
    below.set(xlabel="confidence", ylabel="images")
    percent_axis(below.xaxis)
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    below.yaxis.set_major_formatter(PlainFormatter())
    save(figure, path)
    return figure


def _draw_counts(axes: Axes, counts: list[float], index: int, ways: int) -> None:
    """Draw one method's counts per bin next to those of the others; with numbers if it is the only one."""
    width = 0.86 / len(counts) / ways
    left = [(bin + 0.07) / len(counts) + index * width for bin in range(len(counts))]
    bars = axes.bar(left, counts, width, align="edge", color=look(index)["color"])
    if ways == 1:
        axes.bar_label(bars, [f"{count:,.0f}" for count in counts], fontsize=6.5, padding=1)
        axes.margins(y=0.15)


@style()
def draw_confusion_matrix(
    counts: Tensor, classes: Sequence[str], path: Path | None = None, title: str = "Confusion matrix"
) -> Figure:
    """Draw how many images of each true class (row) are predicted as each class (column), and what share that is.

    Args:
        counts: (K, K), integers; rows are true classes.
        classes: The classes' names.
        path: File to write; None writes none.
        title: The figure's title.
    """
    names = [shorten(name, 40) for name in classes]
    cell = min(CELL, MATRIX / len(names))
    size, slanted = min(9.0, 54 * cell), len(names) <= NUMBERED
    label = widest(names, size)
    side = cell * len(names)
    figure = new_picture(max(side + label + 1.6, 5), max(side + label * (0.75 if slanted else 1) + 1.1, 4), title)
    axes = figure.subplots()
    axes.grid(False)
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).cpu()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        _write_numbers(axes, counts.tolist(), shares.tolist())
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, fontsize=size, **(slant if slanted else {"rotation": 90}))
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", anchor="N")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="share of the true class's images", shrink=0.8, aspect=30)
    percent_axis(bar.ax.yaxis)
    bar.outline.set_visible(False)
    save(figure, path)
    return figure


def _write_numbers(axes: Axes, counts: list[list[int]], shares: list[list[float]]) -> None:
    """Write share and count into each nonzero cell."""
    for row, (line, parts) in enumerate(zip(counts, shares, strict=True)):
        for column, (count, share) in enumerate(zip(line, parts, strict=True)):
            if not count:
                continue
            colour = "white" if share > 0.7 else TEXT
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            weight = "bold" if row == column else "normal"
            looks: dict[str, Any] = {"ha": "center", "color": colour, "in_layout": False}
            axes.text(column, row - 0.02, text, va="bottom", fontsize=9, fontweight=weight, **looks)
            axes.text(column, row + 0.08, f"{count:,}", va="top", fontsize=6.5, **looks)
