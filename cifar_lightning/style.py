"""The common style of all pictures: colours, fonts and scales, and how figures are saved.

Drawing functions are decorated with `@style()`, start with `new_picture` and end with `save`.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, log10
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import colormaps, rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter

from cifar_lightning.files import write_whole

#: Pixels per inch on the screen, and in files, which have twice the resolution.
SCREEN_DPI = 100
DPI = 200

# Okabe and Ito, "Color Universal Design", 2008: distinguishable with any kind of colour blindness. Their yellow is left
# out because thin yellow lines are invisible on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY, LIGHT_GREY, TEXT = "#8C8C8C", "#D0D0D0", "#262626"
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

TRAINING, VALIDATION = BLUE, VERMILLION
RIGHT, WRONG = BLUE, VERMILLION

#: Colour map for numbers: viridis without its pale end.
SEQUENCE = ListedColormap(colormaps["viridis"].resampled(256).colors[:226], "sequence")  # type: ignore[attr-defined]

_TITLE_SIZE = 12
_PARAMETERS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.titlesize": _TITLE_SIZE,
    "figure.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.color": TEXT,
    "text.parse_math": False,  # a $ in a class or file name is just a $
    "xtick.color": GREY,
    "xtick.labelcolor": TEXT,
    "xtick.labelsize": 8.5,
    "ytick.color": GREY,
    "ytick.labelcolor": TEXT,
    "ytick.labelsize": 8.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Make matplotlib use our style in a context or a decorated function, regardless of the user's settings."""
    with rc_context():
        rcdefaults()
        rcParams.update(_PARAMETERS)
        yield


class Picture(Figure):
    """A figure that a notebook displays as a cell's value, at twice the screen's resolution."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(inches * SCREEN_DPI) for inches in self.get_size_inches())
        return _render(self, "png"), {"width": width, "height": height}


def new_picture(width: float, height: float, title: str = "") -> Picture:
    """An empty picture with a size in inches; long titles are wrapped."""
    picture = Picture(figsize=(width, height), dpi=SCREEN_DPI, layout="constrained")
    if title:
        per_line = int(width * 72 / (0.63 * _TITLE_SIZE))  # a bold character is about 0.63 of the font size wide
        picture.suptitle("\n".join(textwrap.wrap(title, per_line)), x=0.01, ha="left")
    return picture


def save(figure: Figure, path: Path | None) -> None:
    """Write a figure to a file atomically; do nothing if there is no path."""
    if path is not None:
        write_whole(path, _render(figure, path.suffix[1:] or "png"))


def _render(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    with style():  # ticks and their labels are created here
        figure.savefig(file, format=kind, dpi=DPI)
    return file.getvalue()


def look(index: int) -> dict[str, Any]:
    """Colour and line style of the line with this index; 28 lines are distinguishable."""
    style = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": style}


def beside(axes: Axes, handles: Sequence[Artist], title: str = "") -> None:
    """Put a legend to the right of the axes, where it covers nothing."""
    axes.legend(
        handles=handles, title=title, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, alignment="left"
    )


def shorten(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters by cutting out its middle."""
    if len(text) <= most:
        return text
    return text[: most - most // 2 - 1] + "…" + text[len(text) - most // 2 :]


def widest(texts: Sequence[str], size: float, weight: str = "normal") -> float:
    """Width of the widest text, in inches."""
    font, renderer = FontProperties(size=size, weight=weight), RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    measure: Any = renderer.get_text_width_height_descent
    return max(float(measure(text, font, ismath=False)[0]) for text in texts) / DPI


# ---------------------------------------------------------------------------------------------------------- scales


def plain(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, as people write it: 0.003, 2.5e-5, 1,200."""
    if 1000 <= abs(value) < 1e7 and value == round(value):
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


class PlainFormatter(Formatter):
    """Formats ticks as `plain` numbers, without an offset or factor at the end of the axis.

    Args:
        unit: 1, or 0.01 for percentages.
    """

    def __init__(self, unit: float = 1.0) -> None:
        self._unit, self._sign = unit, "" if unit == 1 else "%"

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of the tick at `x`."""
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        if self.axis.get_scale() == "log":  # type: ignore[union-attr]
            return plain(x)
        span, largest = high - low, max(abs(low), abs(high))
        x = 0.0 if abs(x) < 1e-9 * span else x  # 0, up to rounding
        return plain(x / self._unit, 3 + max(0, ceil(log10(largest / span))) if span else 3) + self._sign


def plain_axis(axes: Axes) -> None:
    """Label the y axis with plain numbers."""
    axes.yaxis.set_major_formatter(PlainFormatter())


def percent_axis(axis: Axis) -> None:
    """Label an axis of fractions with percentages."""
    axis.set_major_formatter(PlainFormatter(0.01))


def whole_axis(axes: Axes, label: str) -> None:
    """Label the x axis, with ticks at whole numbers only."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(PlainFormatter())


def log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic; the data must have been drawn."""
    axes.set_yscale("log")
    log_ticks(axes.yaxis)


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with a few plain numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=9))
    axis.set_major_formatter(PlainFormatter())
    axis.set_minor_formatter(NullFormatter())
