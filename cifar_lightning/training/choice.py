"""Whether a training's steps are compiled, how many are made in one of Lightning's hooks, and by how many threads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from cifar_lightning.compiled.cuda_graph import makes_graphs
from cifar_lightning.compiled.threads import choose_threads
from cifar_lightning.compiled.torch_internals import is_newer_than_tested, missing_names
from cifar_lightning.training.length import count_optimizer_steps
from cifar_lightning.training.obstacles import find_obstacle, find_watcher

Compile = Literal["auto", "always", "never"]

#: Seconds that a compiled step saves, at least: 2 ms at batch 32 and 5 ms at batch 128 on two quiet cores.
SAVED_SECONDS = 0.004


@dataclass(frozen=True)
class Execution:
    """How the steps of a training are executed; a resume keeps to it, since sums differ in their last bits.

    Args:
        compiled: Whether by compiled code.
        steps: Largest number of steps in one of Lightning's hooks.
        threads: Number of threads.
        reason: Why not compiled, or why one step at a time; "" if there is none.
        graphs: Whether compiled steps are CUDA graphs.
    """

    compiled: bool
    steps: int
    threads: int
    reason: str = ""
    graphs: bool = False

    def __str__(self) -> str:
        kind = "CUDA graphs" if self.graphs else "compiled"
        kind = kind + f", {self.steps} at once" * (self.steps > 1) if self.compiled else "plain"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"Training steps: {kind}, {threads}" + (f" ({self.reason})" if self.reason else "")


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
    """Choose before the first step.

    Args:
        trainer: The trainer, set up.
        module: The module that is to be trained.
        compile: "never"; "always", or else an error; or where it is safe and pays ("auto").
        steps: Number of steps in one hook, if nothing needs fewer.
        widths: Number of inputs and outputs of the largest layer, by which the number of threads is chosen.
        batch_size: Number of images a step, of all networks if several step at once.
        seconds: How long it takes until there is compiled code, for so many threads.
        resumed: How the steps of a training that is resumed were executed: kept, unless `compile` contradicts it.
        obstacle: What the module itself knows that the compiled step can't do; "" for nothing.

    Raises:
        ValueError: If steps are to be compiled, always or as before, but can't be.
    """
    obstacle = obstacle or find_obstacle(trainer, module)
    impatient = find_watcher(trainer, module)
    device = trainer.strategy.root_device
    graphs = makes_graphs(device)
    if resumed is not None and (compile == "auto" or (compile == "always" and resumed.compiled)):
        if resumed.compiled and obstacle:
            raise ValueError(
                "the resumed training's steps can't be compiled: expected a training without what follows, as before, "
                f"or --execution.compile never, whose sums differ in their last bits; got {obstacle}"
            )
        steps = 1 if impatient else resumed.steps
        return replace(resumed, steps=steps, reason="as before", graphs=resumed.compiled and graphs)
    if compile == "never" and resumed:
        return Execution(False, 1, resumed.threads)
    if compile == "always" and not graphs:
        obstacle = obstacle or _missing()
    if compile == "always" and obstacle:
        raise ValueError(
            f"the training step can't be compiled: expected --execution.compile auto or never, or a training without "
            f"that; got {obstacle}"
        )
    threads = choose_threads(*widths, batch_size) if device.type == "cpu" else torch.get_num_threads()
    if compile == "auto":
        obstacle = obstacle or _reason_to_train_plainly(trainer, seconds(threads))
    if compile == "never" or obstacle:
        return Execution(False, 1, threads, "" if compile == "never" else obstacle)
    reason = f"{impatient} follows each batch" if impatient and steps > 1 else ""
    return Execution(True, 1 if impatient else steps, threads, reason, graphs)


def _missing() -> str:
    """What torch lacks for compiled steps; "" for nothing."""
    names = missing_names()
    return f"torch {torch.__version__} without {', '.join(names)}" if names else ""


def _reason_to_train_plainly(trainer: Trainer, seconds: float) -> str:
    """Why "auto" does not compile a step that could be compiled; "" for no reason."""
    if trainer.strategy.root_device.type != "cpu":
        return "--execution.compile auto compiles on CPUs only; always makes CUDA graphs"
    length = count_optimizer_steps(trainer)
    if length is not None and length * SAVED_SECONDS < seconds:
        return f"compiling may take {seconds:.0f} s, more than {length:,} steps win back"
    if is_newer_than_tested():
        return f"compiled steps are not tested with torch {torch.__version__}; --execution.compile always tries them"
    return _missing()
