"""The pictures of an evaluation and of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

DPI = 120


def draw_reliability(curves: Mapping[str, Mapping[str, Tensor]], path: Path, title: str) -> None:
    """Draw accuracy against confidence, and how many predictions have which confidence.

    Args:
        curves: What `Reliability` computes, by the name of the way to predict.
        path: The file to write.
        title: The figure's title.
    """
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    figure.suptitle(title)
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
        part.grid(alpha=0.3)
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
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    figure.suptitle(title)
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
        images: (N, 3, 32, 32), uint8.
        probabilities: (N, K).
        captions: A line above each image.
        classes: The classes' names.
        path: The file to write.
        title: The figure's title.
        std: (N, K), drawn as the bars' errors.
    """
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.6 * columns, 1.9 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 0.9] * columns)
    for axes in grid.flat[2 * len(images) :]:
        axes.axis("off")
    for index, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        picture, bars = grid.flat[2 * index], grid.flat[2 * index + 1]
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
