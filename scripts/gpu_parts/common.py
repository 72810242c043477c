"""What the parts share: sizes, small training runs, and the format of a row."""

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
from cifar_lightning.training.process_settings import MatmulPrecision

#: Figures by name, with `what` was checked, whether it is `ok` (None if skipped), and `why` not.
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Device and sizes for all parts.

    Args:
        device: "cuda" or "cpu".
        images: Number of training images per timed epoch.
        epochs: Number of timed epochs.
        networks: Number of networks in a stack.
        hidden_sizes: Hidden layers of the timed network.
        folder: Folder for output files.
    """

    device: str
    images: int
    epochs: int
    networks: int
    hidden_sizes: str
    folder: Path

    def make_data(self, images: int = 2_000, batch_size: int = 64, **options: Any) -> CIFAR10DataModule:
        """Make synthetic training images, plus a tenth as many for validation."""
        size = images * 11 // 10
        return CIFAR10DataModule(
            source="synthetic",
            synthetic_size=size,
            val_size=size - images,
            batch_size=batch_size,
            order_seed=1,
            **options,
        )

    def make_module(
        self, compile: Compile = "never", precision: MatmulPrecision | None = None, **options: Any
    ) -> MLPClassifier:
        """Make the same small network each time, apart from the options, with a learning rate that works."""
        if compile == "always" and self.device == "cpu":
            call_in_place_of_graphs()
        seed_everything(1)
        module = MLPClassifier(**{"hidden_sizes": "5x100", "lr": 1e-3} | options)
        module.executor = Executor(compile, float32_matmul_precision=precision)
        return module

    def make_trainer(self, **options: Any) -> Trainer:
        """Make a trainer on one device that prints and writes nothing by default."""
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        defaults = dict.fromkeys(quiet, False) | {"default_root_dir": self.folder, "num_sanity_val_steps": 0}
        defaults |= {"accelerator": "gpu" if self.device == "cuda" else "cpu", "devices": 1}
        return Trainer(**defaults | options)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_mb(self) -> int:
        """Peak memory in MB since `reset_peak`, or on a CPU since the process started."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() // 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def reset_peak(self) -> None:
        """Reset `peak_mb`, on a GPU only."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()


class LeftOut(Exception):  # noqa: N818 (not an error)
    """Raised, with the reason, to skip a check that makes no sense here."""


def check(what: str, function: Callable[[], Row]) -> Row:
    """Run a check and make its row: the function returns figures, or raises if the check fails."""
    try:
        return {"what": what, "ok": True, **function()}
    except LeftOut as why:
        return {"what": what, "ok": None, "why": str(why)}
    except Exception as error:  # any error: the other rows are still needed
        traceback.print_exc()
        (first, *_) = str(error).strip().splitlines() or [""]
        return {"what": what, "ok": False, "why": f"{type(error).__name__}: {first}"}


def expect(is_so: bool, otherwise: str) -> None:
    """Fail a check unless `is_so`; `otherwise` describes what was seen instead."""
    if not is_so:
        raise AssertionError(otherwise)


def call_in_place_of_graphs() -> None:
    """Make `--execution.compile always` use the code path of CUDA graphs on a CPU, with direct calls as graphs."""
    for module in (choice, obstacles):
        vars(module)["makes_graphs"] = lambda device: True
