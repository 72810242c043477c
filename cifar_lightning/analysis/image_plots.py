"""A picture of images with their predictions."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from cifar_lightning.style import (
    BLACK,
    LIGHT_GREY,
    RIGHT,
    TEXT,
    WRONG,
    Picture,
    new_picture,
    percent_axis,
    save,
    shorten,
    style,
    widest,
)

#: Number of most probable classes that get a bar; the true class gets one too.
BARS = 10
#: Inches: maximum width of the picture, side of an image, length of the longest bar, gap between columns.
WIDTH, IMAGE, LENGTH, GAP = 17.5, 1.4, 1.1, 0.22
#: Height in inches of a line of text above or below an image, and its maximum length in characters.
LINE, CHARACTERS = 0.135, 24

#: Left, bottom, width and height, as fractions of the picture.
Box = tuple[float, float, float, float]


@style()
def draw_images(
    images: Tensor,
    probabilities: Tensor,
    captions: Sequence[str],
    classes: Sequence[str],
    path: Path | None = None,
    title: str = "Predictions",
    std: Tensor | None = None,
    labels: Sequence[int | None] | None = None,
) -> Figure:
    """Draw images, each next to a bar chart of its probabilities, and mark correct and wrong predictions if known.

    Args:
        images: (N, C, H, W), uint8; floating images are each scaled to their own minimum and maximum.
        probabilities: (N, K).
        captions: Text below each image.
        classes: The classes' names.
        path: File to write; None writes none.
        title: The figure's title.
        std: (N, K), drawn as error bars.
        labels: The true class of each image; None where unknown.
    """
    names = [shorten(name, 40) for name in classes]
    known = labels if labels is not None else [None] * len(images)
    heads = [_verdict(row, label, names) for row, label in zip(probabilities.tolist(), known, strict=True)]
    feet = [_wrap(caption) for caption in captions]
    place = _Places(len(images), names, max(map(len, heads)), max(map(len, feet)))
    key = _key(any(label is not None for label in known), std is not None)
    figure = place.new_picture(title, key)
    for index, (image, row) in enumerate(zip(images, probabilities.tolist(), strict=True)):
        picture, bars = (figure.add_axes(box) for box in place.boxes(index))
        colour = TEXT if known[index] is None else RIGHT if known[index] == _best(row) else WRONG
        if image.is_floating_point():
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        picture.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=255)  # for grayscale images
        picture.set(xticks=[], yticks=[])
        picture.spines[:].set(visible=colour != TEXT, color=colour, linewidth=3)
        picture.set_title("\n".join(heads[index]), fontsize=8, color=colour, fontweight="bold", loc="left")
        picture.set_xlabel("\n".join(feet[index]), fontsize=7.5, loc="left")
        _draw_bars(bars, row, known[index], names, std[index].tolist() if std is not None else None)
    save(figure, path)
    return figure


class _Places:
    """Positions of the images and their bars, computed here because matplotlib's layout of fifty axes takes seconds.

    Args:
        count: Number of images.
        names: The class names, shown between an image and its bars.
        above: Number of lines above an image.
        below: Number of lines below an image.
    """

    def __init__(self, count: int, names: Sequence[str], above: int, below: int) -> None:
        self.names = widest(names, 6.5, "bold") + 0.15
        self.above, self.below = LINE * above + 0.08, max(LINE * below + 0.08, 0.2)
        self.width, self.height = IMAGE + self.names + LENGTH + GAP, self.above + IMAGE + self.below + 0.1
        self.columns = min(count, 5, max(1, int(WIDTH / self.width)))
        self.rows = -(-count // self.columns)

    def new_picture(self, title: str, key: Sequence[Patch]) -> Picture:
        """An empty picture with room for all images, a title and a legend."""
        width = max(self.columns * self.width + 0.3, 4.5)
        columns = len(key) if width > 2.2 * len(key) else 1
        self.bottom = 0.2 + 0.2 * len(key) / columns
        picture = new_picture(width, 1, title)
        top = 0.15 + 0.2 * (1 + picture.get_suptitle().count("\n")) * bool(title)
        self.size = width, height = width, self.bottom + self.rows * self.height + top
        picture.set_layout_engine("none")
        picture.set_size_inches(width, height)
        if title:
            picture.suptitle(picture.get_suptitle(), x=0.15 / width, y=1 - 0.08 / height, ha="left", va="top")
        picture.legend(handles=key, loc="lower left", ncols=columns, bbox_to_anchor=(0, 0))
        return picture

    def boxes(self, index: int) -> tuple[Box, Box]:
        """The positions of an image and its bars."""
        row, column = divmod(index, self.columns)
        x = 0.15 + column * self.width
        y = self.bottom + self.below + (self.rows - 1 - row) * self.height
        return self._box(x, y, IMAGE), self._box(x + IMAGE + self.names, y, LENGTH)

    def _box(self, x: float, y: float, width: float) -> Box:
        """A box as tall as an image, given in inches."""
        whole, height = self.size
        return x / whole, y / height, width / whole, IMAGE / height


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, CHARACTERS)


def _best(probabilities: Sequence[float]) -> int:
    return probabilities.index(max(probabilities))


def _verdict(probabilities: Sequence[float], label: int | None, names: Sequence[str]) -> list[str]:
    """The lines that give the prediction, whether it is correct, and if not, the true class."""
    best = _best(probabilities)
    predicted = f"{names[best]} {probabilities[best]:.0%}"
    if label is None:
        return _wrap(predicted)
    return _wrap(f"✓ {predicted}") if label == best else [*_wrap(f"✗ {predicted}"), *_wrap(f"true: {names[label]}")]


def _draw_bars(
    axes: Axes, probabilities: Sequence[float], label: int | None, names: Sequence[str], std: Sequence[float] | None
) -> None:
    """Draw a bar for every class, or with many classes for the most probable and the true ones."""
    shown = sorted(range(len(names)), key=lambda k: -probabilities[k])[:BARS]
    shown = sorted(
        {*shown, *([label] if label is not None else [])}, key=lambda k: -probabilities[k] if len(names) > BARS else k
    )
    best = _best(probabilities)
    colour = WRONG if label not in (None, best) else RIGHT
    axes.barh(
        range(len(shown)),
        [probabilities[k] for k in shown],
        color=[colour if k == best else LIGHT_GREY for k in shown],
        edgecolor=[BLACK if k == label else "none" for k in shown],
        xerr=[std[k] for k in shown] if std is not None else None,
        error_kw={"linewidth": 0.8},
    )
    axes.set_yticks(range(len(shown)), [names[k] for k in shown], fontsize=6.5)
    for k, text in zip(shown, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if k == label else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1])
    percent_axis(axes.xaxis)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _key(labelled: bool, sampled: bool) -> list[Patch]:
    """The legend's entries."""
    if not labelled:
        key = [Patch(color=RIGHT, label="predicted class")]
    else:
        key = [
            Patch(color=RIGHT, label="✓ predicted, right"),
            Patch(color=WRONG, label="✗ predicted, wrong"),
            Patch(facecolor="white", edgecolor=BLACK, label="true class"),
        ]
    return key + [Patch(color="none", label="whiskers: standard deviation of the samples")] * sampled
