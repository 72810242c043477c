"""Ctrl-C, held until a step is whole."""

import signal
import threading
from typing import Any


class HeldInterrupt:
    """Holds the first Ctrl-C until `act`, so that no step is torn in two; a second one acts at once."""

    def __init__(self) -> None:
        self._holding = self._pending = False

    def hold(self) -> None:
        """Begin, unless the program has its own way with Ctrl-C."""
        python = signal.default_int_handler
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is python:
            signal.signal(signal.SIGINT, self._take)
            self._holding, self._pending = True, False

    def _take(self, *args: Any) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True

    def act(self) -> None:
        """Raise what was held.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
        """
        if self._pending:
            self.release()
            raise KeyboardInterrupt

    def release(self) -> None:
        """End; what was held is forgotten."""
        if self._holding:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._holding = self._pending = False
