"""One line at the bottom of a terminal that says how far a long job is."""

import logging
import sys
import time
from collections.abc import Sequence
from math import isfinite
from types import TracebackType
from typing import Self, TextIO

from rich import get_console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cifar_lightning.callbacks.notebook_line import NotebookLine

#: Seconds between two drawings: to draw the line takes as long as some steps.
PERIOD = 0.25
WIDE, NARROW = 24, 12  # columns of the bar, in a terminal of 80 and in a narrower one


class ProgressLine:
    """Shows the state of a job in a line of its own, under everything that is printed meanwhile.

    The line never wraps: where the terminal is too narrow, figures are left out, the last ones first. It vanishes when
    the job ends. In a notebook it stands where it was first drawn. In a file, or a terminal without cursor movements,
    there is none.
    """

    def __init__(self) -> None:
        self._live: Live | NotebookLine | None = None
        self._handlers: list[logging.StreamHandler[TextIO]] = []
        self._drawn = 0.0  # when the line was drawn last

    def start(self) -> None:
        """Take the line, unless it is taken already or there is none."""
        console = get_console()
        if self._live is not None or not (console.is_interactive or console.is_jupyter):
            return
        handlers = _handlers_of_the_terminal()
        self._live = (
            NotebookLine(console) if console.is_jupyter else Live(console=console, auto_refresh=False, transient=True)
        )
        self._live.start()
        # Now `sys.stderr` prints above the line, but a handler that holds the old one would tear it.
        for handler in handlers:
            handler.setStream(sys.stderr)
        self._handlers, self._drawn = handlers, 0.0

    def stop(self) -> None:
        """Erase the line, and give it back."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_due(self) -> bool:
        """Whether it is time to draw the line again."""
        return self._live is not None and time.monotonic() - self._drawn >= PERIOD

    def show(
        self, what: str, done: int, total: float | None, left: float | None = None, figures: Sequence[str] = ()
    ) -> None:
        """Draw the line, if there is one.

        Args:
            what: What is going on.
            done: Number of parts of it that are done.
            total: Number of all parts; None or infinite if unknown.
            left: Seconds until all are done, if known.
            figures: What else is worth knowing, in the order of its importance.
        """
        if self._live is not None:
            self._drawn = time.monotonic()
            self._live.update(_compose(self._live.console.width, what, done, total, left, figures), refresh=True)


class Clock:
    """Tells from the time that some parts of a job took how long the others will take."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def seconds_left(self, done: int, total: float | None) -> float | None:
        """Seconds until all are done; None if that can't be known, as in the first call, which starts the clock."""
        if self._start is None:
            self._start = time.monotonic(), done
        start, first = self._start
        if total is None or not isfinite(total) or done <= first:
            return None
        return max(total - done, 0.0) * (time.monotonic() - start) / (done - first)


def duration(seconds: float) -> str:
    """Minutes and seconds, such as 1:05, or hours and minutes, such as 2 h 05 min."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _compose(
    width: int, what: str, done: int, total: float | None, left: float | None, figures: Sequence[str]
) -> Table:
    is_known = total is not None and isfinite(total)
    bar_width = WIDE if width >= 80 else NARROW
    text = f"{done:,}/{total:,.0f}" if total is not None and is_known else f"{done:,}"
    parts = [text, *([] if left is None else [f"{duration(left)} left"])]
    room = width - 1 - len(what) - bar_width - 2 - len("  ".join(parts))
    for figure in figures:
        room -= 2 + len(figure)
        if room < 0:
            break
        parts.append(figure)
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total if is_known else None, done, bar_width, pulse=not is_known)
    table.add_row(Text(what), bar, Text("  ".join(parts)))
    return table


def _handlers_of_the_terminal() -> list[logging.StreamHandler[TextIO]]:
    """The handlers of Lightning's messages, and of the program's own, that write to the standard error."""
    names = (None, "lightning", "lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream is sys.stderr]
