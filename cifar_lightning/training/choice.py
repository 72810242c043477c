"""Chooses whether steps are compiled, how many of them run per trainer hook, and with how many threads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from cifar_lightning.compiled.cuda_graph import makes_graphs
from cifar_lightning.compiled.threads import choose_threads
from cifar_lightning.compiled.torch_internals import is_newer_than_tested, missing_names
from cifar_lightning.training.length import count_optimizer_steps
from cifar_lightning.training.obstacles import find_foreign_layer, find_obstacle, find_watcher
from cifar_lightning.training.process_settings import MatmulPrecision

Compile = Literal["auto", "always", "never"]

#: Seconds that a compiled step saves: 2 ms at batch 32 and 5 ms at batch 128 on two idle cores.
SAVED_SECONDS = 0.004


@dataclass(frozen=True)
class Execution:
    """How the steps of a run are executed. A resumed run keeps it, since sums would differ in their last bits.

    Args:
        compiled: Whether steps are compiled.
        steps: Largest number of steps per trainer hook.
        threads: Number of threads.
        reason: Why steps are not compiled or run one at a time; "" if there is no reason.
        graphs: Whether compiled steps are CUDA graphs.
        matmul_precision: Precision of float32 matrix products; None for torch's own setting.
    """

    compiled: bool
    steps: int
    threads: int
    reason: str = ""
    graphs: bool = False
    matmul_precision: MatmulPrecision | None = None

    def __str__(self) -> str:
        kind = "CUDA graphs" if self.graphs else "compiled"
        kind = kind + f", {self.steps} at once" * (self.steps > 1) if self.compiled else "plain"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        precision = f", float32 products in {self.matmul_precision} precision" if self.matmul_precision else ""
        return f"Training steps: {kind}, {threads}{precision}" + (f" ({self.reason})" if self.reason else "")


def choose_execution(
    trainer: Trainer,
    module: LightningModule,
    compile: Compile,
    steps: int,
    widths: tuple[int, int],
    batch_size: int,
    seconds: Callable[[int], float] = lambda threads: 0.0,
    resumed: Execution | None = None,
    obstacle: str = "",
) -> Execution:
    """Choose how to execute steps, before the first one.

    Args:
        trainer: The trainer, set up.
        module: The module to train.
        compile: "never", "always" (an error if impossible), or "auto" (where it is safe and worthwhile).
        steps: Number of steps per hook, if nothing requires fewer.
        widths: Number of inputs and outputs of the largest layer, used to choose the number of threads.
        batch_size: Number of images per step, over all networks if several step together.
        seconds: Maps a number of threads to the time that compiling or loading the code takes.
        resumed: How the resumed run executed its steps; kept unless `compile` contradicts it.
        obstacle: A reason known to the module why its step can't be compiled; "" for none.

    Raises:
        ValueError: If steps must be compiled, always or as before, but can't be.
    """
    obstacle = obstacle or find_obstacle(trainer, module)
    impatient = find_watcher(trainer, module)
    device = trainer.strategy.root_device
    graphs = makes_graphs(device)
    if resumed is not None and (compile == "auto" or (compile == "always" and resumed.compiled)):
        if resumed.compiled and obstacle:
            raise ValueError(
                f"cannot resume with compiled steps: got {obstacle}. Remove that, or pass --execution.compile never "
                "(results then differ in the last bits)"
            )
        steps = 1 if impatient else resumed.steps
        return replace(resumed, steps=steps, reason="as before", graphs=resumed.compiled and graphs)
    if compile == "never" and resumed:
        return Execution(False, 1, resumed.threads)
    if compile == "always" and not graphs:
        obstacle = obstacle or _missing()
    if compile == "always" and obstacle:
        raise ValueError(
            f"cannot compile the training step: got {obstacle}. Remove that, or pass --execution.compile auto or never"
        )
    threads = choose_threads(*widths, batch_size) if device.type == "cpu" else torch.get_num_threads()
    if compile == "auto" and not obstacle:
        obstacle = _reason_against_graphs(module) if graphs else _reason_to_train_plainly(trainer, seconds(threads))
    if compile == "never" or obstacle:
        return Execution(False, 1, threads, "" if compile == "never" else obstacle)
    reason = f"{impatient} follows each batch" if impatient and steps > 1 else ""
    return Execution(True, 1 if impatient else steps, threads, reason, graphs)


def _missing() -> str:
    """The names of torch that compiled steps need and that are missing; "" if there are none."""
    names = missing_names()
    return f"torch {torch.__version__} without {', '.join(names)}" if names else ""


def _reason_against_graphs(module: LightningModule) -> str:
    """Why "auto" captures no CUDA graphs, which save time after a few steps; "" if it does.

    A capture that fails leaves torch's generators unusable, so there is no way back to plain steps.
    """
    layer = find_foreign_layer(module)
    return f"{layer} may not work in CUDA graphs; --execution.compile always tries it" if layer else ""


def _reason_to_train_plainly(trainer: Trainer, seconds: float) -> str:
    """Why "auto" does not compile a step that could be compiled; "" if it does."""
    length = count_optimizer_steps(trainer)
    if length is not None and length * SAVED_SECONDS < seconds:
        return f"compiling may take {seconds:.0f} s, more than {length:,} steps would save"
    if is_newer_than_tested():
        return f"compiled steps are untested with torch {torch.__version__}; --execution.compile always tries them"
    return _missing()
