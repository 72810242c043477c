"""What every command that trains does: set the process up, and end a user's mistake in one message."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cifar_lightning.cli.mistakes import one_message
from cifar_lightning.errors import DivergenceError
from cifar_lightning.files import is_no_room
from cifar_lightning.training.ranks import lost_rank

#: Exit statuses of a process that Ctrl-C or SIGTERM has ended: 128 and the signal's number.
CTRL_C, TERMINATED = 130, 143


def _silence_what_does_not_concern_the_user() -> None:
    for message in (
        ".*does not have many workers.*",  # the whole data set is in memory: workers would only add their cost
        "Experiment logs directory .* exists and is not empty.*",  # it holds the run's config already
        ".*LeafSpec.* is deprecated.*",  # inside of Lightning
        r"The number of training batches \(\d+\) is smaller than the logging interval.*",  # a line an epoch is ours
    ):
        warnings.filterwarnings("ignore", message=message)
    # Advertisements, a device that nobody asked for, and what other lines say.
    unwanted = (
        "Tip: ",
        "TPU available: False",
        "`Trainer.fit` stopped: `max_epochs=",
        "Restoring states from",
        "`weights_only` was not set",
    )
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(
            lambda record: not any(words in record.getMessage() for words in unwanted)
        )


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no traceback of a full disk from TensorBoard's thread, which hands the error to the one that logs."""
    before = threading.excepthook

    def report(said: threading.ExceptHookArgs) -> None:
        if not (said.exc_value and is_no_room(said.exc_value)):
            before(said)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def command() -> Iterator[None]:
    """Set the process up for a command, and end it in one message on a user's mistake.

    Raises:
        SystemExit: After a message, with status 2 for a user's mistake, and 1 for a training that has diverged, lost
            another process, or run out of a GPU's memory or of room on the disk; with 130 after Ctrl-C, and with 143
            after SIGTERM.
    """
    _silence_what_does_not_concern_the_user()
    # Units that died leave gradients' running means that shrink for ever, and denormal numbers take a hundred times as
    # long. Here, because threads inherit it from the one that starts them.
    torch.set_flush_denormal(True)
    with one_message(MisconfigurationException), _quiet_threads():
        try:
            yield
        except KeyboardInterrupt:
            raise SystemExit(CTRL_C) from None
        except SIGTERMException:  # Lightning's, whose status says that nothing had happened
            raise SystemExit(TERMINATED) from None
        except SystemExit as stop:  # Lightning's after Ctrl-C, with status 1
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise SystemExit(CTRL_C) from None
            raise
        except DivergenceError as error:
            _print_once(f"error: {error}")
            raise SystemExit(1) from None
        except torch.OutOfMemoryError as error:
            said = ". ".join(str(error).split(". ")[:2])  # what follows are figures of each process, and of torch's own
            print("; ".join([f"error: {said}", *getattr(error, "__notes__", [])]), file=sys.stderr)
            raise SystemExit(1) from None
        except RuntimeError as error:
            if lost := lost_rank(error):
                print(
                    "error: another process of this training has ended, and what it printed says why: expected all of "
                    f"them until the end, got {lost!r}. The same command with --ckpt_path last goes on from the "
                    "last checkpoint",
                    file=sys.stderr,
                )
                raise SystemExit(1) from None
            # Lightning reports some mistakes of its user, such as early stopping without validation, by a RuntimeError.
            if "conditioned on metric" not in str(error):
                raise
            raise ValueError(str(error)) from error


@rank_zero_only
def _print_once(text: str) -> None:
    """Print what all ranks know of."""
    print(text, file=sys.stderr)
