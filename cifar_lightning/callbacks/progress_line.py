"""A progress line at the bottom of the terminal for a long job."""

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

#: Seconds between two updates: drawing the line takes as long as some steps.
PERIOD = 0.25
WIDE, NARROW = 24, 12  # columns of the bar, in a terminal of at least 80 columns and in a narrower one


class ProgressLine:
    """Shows the progress of a job on a line below everything that is printed in the meantime.

    The line never wraps: if the terminal is too narrow, figures are left out, the last ones first. It disappears when
    the job ends. In a notebook it stays where it was first drawn. There is none in a file or in a terminal without
    cursor control.
    """

    def __init__(self) -> None:
        self._live: Live | NotebookLine | None = None
        self._handlers: list[logging.StreamHandler[TextIO]] = []
        self._drawn = 0.0  # when the line was last drawn

    def start(self) -> None:
        """Show the line, unless it is shown already or there can be none."""
        console = get_console()
        if self._live is not None or not (console.is_interactive or console.is_jupyter):
            return
        handlers = _handlers_of_the_terminal()
        self._live = (
            NotebookLine(console) if console.is_jupyter else Live(console=console, auto_refresh=False, transient=True)
        )
        self._live.start()
        # Now `sys.stderr` prints above the line, but a handler that holds the old stream would break it.
        for handler in handlers:
            handler.setStream(sys.stderr)
        self._handlers, self._drawn = handlers, 0.0

    def stop(self) -> None:
        """Erase the line."""
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
            what: What is being done.
            done: Number of parts done.
            total: Number of parts in all; None or infinite if unknown.
            left: Seconds left, if known.
            figures: Further information, the most important first.
        """
        if self._live is not None:
            self._drawn = time.monotonic()
            self._live.update(_compose(self._live.console.width, what, done, total, left, figures), refresh=True)


class Clock:
    """Estimates the remaining time of a job from the time so far."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def seconds_left(self, done: int, total: float | None) -> float | None:
        """Seconds left; None if unknown, as in the first call, which starts the clock."""
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
    """The logging handlers of Lightning and of the program that write to stderr."""
    names = (None, "lightning", "lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream is sys.stderr]
