"""Delays Ctrl-C until a step is complete, and handles a SIGTERM that only one of several processes gets."""

import os
import signal
import sys
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

#: Seconds for a rank to stop together with the others.
PATIENCE = 20.0


class HeldInterrupt:
    """Holds the first Ctrl-C until `act`, so that it does not interrupt a step; a second one takes effect at once."""

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
        """Raise a held Ctrl-C, if there is one.

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


class LoneTermination(Callback):
    """Ends a rank that received SIGTERM if it can't stop together with the others.

    Lightning's handler exchanges the news with all ranks. If only this rank received the signal, and it is not the
    first one, the ranks then wait for each other forever. Once this process has ended, the others notice.

    Args:
        seconds: Time to wait for the ranks to stop together.
    """

    def __init__(self, seconds: float = PATIENCE) -> None:
        self.seconds = seconds
        self._timer: threading.Timer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install a signal handler that starts a timer and then calls Lightning's handler."""
        theirs = signal.getsignal(signal.SIGTERM)
        is_main = threading.current_thread() is threading.main_thread()  # other threads can't install signal handlers
        if trainer.global_rank == 0 or not (is_main and callable(theirs)):
            return

        def take(number: int, frame: Any) -> None:
            self._timer = threading.Timer(self.seconds, self._end)
            self._timer.daemon = True
            self._timer.start()
            theirs(number, frame)

        signal.signal(signal.SIGTERM, take)  # until Lightning restores the original handler at the end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the timer: the process did stop."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        print(
            f"error: this process was told to stop by SIGTERM and ends alone: expected the other processes of this "
            f"training to stop with it within {self.seconds:g} s, got no answer. Send SIGTERM to the first process, "
            "or to all",
            file=sys.stderr,
            flush=True,
        )
        os.kill(os.getpid(), signal.SIGKILL)  # the main thread hangs in a call that nothing else interrupts
