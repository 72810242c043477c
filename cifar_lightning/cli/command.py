"""Sets up the process of every command that trains, and reports errors in one message."""

import ctypes
import logging
import os
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

#: Exit statuses after Ctrl-C and SIGTERM: 128 plus the signal's number.
CTRL_C, TERMINATED = 130, 143

#: glibc's names for two parameters of malloc, from malloc.h, and the value for both, in bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_MEMORY = 2**30


def _silence_what_does_not_concern_the_user() -> None:
    for message in (
        ".*does not have many workers.*",  # the whole data set is in memory: workers would only add their cost
        "Experiment logs directory .* exists and is not empty.*",  # it holds the run's config already
        ".*LeafSpec.* is deprecated.*",  # inside of Lightning
        r"The number of training batches \(\d+\) is smaller than the logging interval.*",  # a line an epoch is ours
    ):
        warnings.filterwarnings("ignore", message=message)
    # Advertisements, a device that nobody asked for, and what other lines already say.
    unwanted = (
        "Tip: ",
        "TPU available: False",
        "`Trainer.fit` stopped: `max_epochs=",
        "Restoring states from",
        "`weights_only` was not set",
        "that has Tensor Cores",  # --execution.float32_matmul_precision answers it
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


def _keep_freed_memory() -> None:
    """Reuse the memory of large tensors. glibc would return it to the system, and each step fetch it page by page.

    That takes an eighth of a step of configs/best/bottleneck.yaml. Other C libraries have no such parameters, and what
    the user sets in the environment counts.
    """
    of_user = [name for name in os.environ if name.startswith("MALLOC_")]
    if sys.platform != "linux" or of_user or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)
        mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY)


@contextmanager
def command() -> Iterator[None]:
    """Set up the process for a command, and report errors in one message.

    Raises:
        SystemExit: After a message, with status 2 on a user error, and 1 if training has diverged, lost another
            process, or run out of GPU memory or disk space; with 130 after Ctrl-C and 143 after SIGTERM.
    """
    _silence_what_does_not_concern_the_user()
    # The running means of dead units' gradients shrink forever, and denormal numbers are a hundred times as slow. It is
    # set here because threads inherit it from the thread that starts them.
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    with one_message(MisconfigurationException), _quiet_threads():
        try:
            yield
        except KeyboardInterrupt:
            raise SystemExit(CTRL_C) from None
        except SIGTERMException:  # Lightning's own status would say that nothing happened
            raise SystemExit(TERMINATED) from None
        except SystemExit as stop:  # Lightning's after Ctrl-C, with status 1
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise SystemExit(CTRL_C) from None
            raise
        except DivergenceError as error:
            _print_once(f"error: {error}")
            raise SystemExit(1) from None
        except torch.OutOfMemoryError as error:
            said = ". ".join(str(error).split(". ")[:2])  # details of each process and of torch follow
            print("; ".join([f"error: {said}", *getattr(error, "__notes__", [])]), file=sys.stderr)
            raise SystemExit(1) from None
        except RuntimeError as error:
            if lost := lost_rank(error):
                print(
                    "error: another process of this run has ended; its own output says why: expected all of them to "
                    f"finish, got {lost!r}. To resume from the last checkpoint, run the same command with "
                    "--ckpt_path last",
                    file=sys.stderr,
                )
                raise SystemExit(1) from None
            # Lightning reports some user errors, such as early stopping without validation, as a RuntimeError.
            if "conditioned on metric" not in str(error):
                raise
            raise ValueError(str(error)) from error


@rank_zero_only
def _print_once(text: str) -> None:
    """Print a message that all ranks have, on the first rank only."""
    print(text, file=sys.stderr)
