"""What the parts share: sizes, small trainings, and the form of a row."""

import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.training import choice, obstacles
from cifar_lightning.training.execution import Compile, Executor

#: Figures by name; `what` was checked, whether it is `ok` (None if it was left out), and `why` not.
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Where the parts run, and how large they are.

    Args:
        device: "cuda" or "cpu".
        images: Number of training images of an epoch that is timed.
        epochs: Number of epochs that are timed.
        networks: Number of networks in a stack.
        hidden_sizes: Of the network that is timed.
        folder: For what trainings write.
    """

    device: str
    images: int
    epochs: int
    networks: int
    hidden_sizes: str
    folder: Path

    def make_data(self, images: int = 2_000, batch_size: int = 64) -> CIFAR10DataModule:
        """Synthetic training images, and a tenth as many more to validate on."""
        size = images * 11 // 10
        return CIFAR10DataModule(
            source="synthetic", synthetic_size=size, val_size=size - images, batch_size=batch_size, order_seed=1
        )

    def make_module(self, compile: Compile = "never", **options: Any) -> MLPClassifier:
        """The same small network each time, unless the options say otherwise; at a rate that it learns at."""
        if compile == "always" and self.device == "cpu":
            call_in_place_of_graphs()
        seed_everything(1)
        module = MLPClassifier(**{"hidden_sizes": "5x100", "lr": 1e-3} | options)
        module.executor = Executor(compile)
        return module

    def make_trainer(self, **options: Any) -> Trainer:
        """A trainer on one device that prints and writes nothing by itself."""
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        defaults = dict.fromkeys(quiet, False) | {"default_root_dir": self.folder, "num_sanity_val_steps": 0}
        defaults |= {"accelerator": "gpu" if self.device == "cuda" else "cpu", "devices": 1}
        return Trainer(**defaults | options)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_mb(self) -> int:
        """Most memory that was taken since `reset_peak`, on a CPU since the process began, in MB."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() // 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def reset_peak(self) -> None:
        """Let `peak_mb` begin anew, where it can."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()


class LeftOut(Exception):  # noqa: N818 (no error)
    """A check has no meaning here, for a reason."""


def check(what: str, function: Callable[[], Row]) -> Row:
    """The row of what a function checks: it returns figures, or raises."""
    try:
        return {"what": what, "ok": True, **function()}
    except LeftOut as why:
        return {"what": what, "ok": None, "why": str(why)}
    except Exception as error:  # whatever it is: the other rows are still wanted
        traceback.print_exc()
        (first, *_) = str(error).strip().splitlines() or [""]
        return {"what": what, "ok": False, "why": f"{type(error).__name__}: {first}"}


def expect(is_so: bool, otherwise: str) -> None:
    """Fail a check, with a text that says what was seen, unless something is so."""
    if not is_so:
        raise AssertionError(otherwise)


def call_in_place_of_graphs() -> None:
    """Let `--execution.compile always` take the way of CUDA graphs on a CPU too, where a direct call replaces each."""
    for module in (choice, obstacles):
        vars(module)["makes_graphs"] = lambda device: True
