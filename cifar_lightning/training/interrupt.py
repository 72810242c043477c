"""Delays Ctrl-C until a step is complete."""

import signal
import threading
from typing import Any


class HeldInterrupt:
    """Holds the first Ctrl-C until `act`, so that it does not interrupt a step; a second one acts at once."""

    def __init__(self) -> None:
        self._holding = self._pending = False

    def hold(self) -> None:
        """Start holding, unless the program handles Ctrl-C itself."""
        python = signal.default_int_handler
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is python:
            signal.signal(signal.SIGINT, self._take)
            self._holding, self._pending = True, False

    def _take(self, *args: Any) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True

    def act(self) -> None:
        """Raise a held Ctrl-C.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
        """
        if self._pending:
            self.release()
            raise KeyboardInterrupt

    def release(self) -> None:
        """Stop holding, and forget a held Ctrl-C."""
        if self._holding:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._holding = self._pending = False
