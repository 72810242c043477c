"""Reports a user's mistake in one message."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Set to see the traceback of an error that is reported in one message.
DEBUG_VARIABLE = "CIFAR_LIGHTNING_DEBUG"


@contextmanager
def one_message(*others: type[Exception]) -> Iterator[None]:
    """Report a ValueError, an OSError or one of the `others` in one message, and exit.

    Raises:
        SystemExit: With status 2, after the message.
    """
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError, *others)
    try:
        yield
    except mistakes as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"error: {error} ({DEBUG_VARIABLE}=1 shows the traceback)", file=sys.stderr)
        raise SystemExit(2) from None
