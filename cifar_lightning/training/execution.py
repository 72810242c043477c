"""How the steps of a training are executed: plainly, or compiled and several in one of Lightning's hooks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich import get_console
from torch import Tensor, nn
from torch.optim import LBFGS

from cifar_lightning.compiled.step import CompiledStep, choose_threads, clip_by_norm, clip_by_value, has_compiler
from cifar_lightning.errors import unknown_name
from cifar_lightning.training.lightning_internals import count_optimizer_steps
from cifar_lightning.training.resume import ExactResume

Compile = Literal["auto", "always", "never"]
T = TypeVar("T")

#: Compiling takes as long as this many plain steps, about.
WORTH_COMPILING = 2000

#: Callbacks that can follow several steps at once.
PATIENT_CALLBACKS = (ExactResume, ModelCheckpoint, ProgressBar, Timer)
#: Callbacks that change what a step is in the course of a training.
REBUILDERS = (BaseFinetuning, GradientAccumulationScheduler, ModelPruning, StochasticWeightAveraging)
#: Hooks that stand between a step's gradients and its update.
GRADIENT_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
#: What a subclass's own makes its steps other ones than those that are compiled.
STEP_METHODS = ("training_step", "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")


@dataclass(frozen=True)
class Execution:
    """How the steps of a training are executed; a resume keeps to it, since sums differ in their last bits.

    Args:
        compiled: Whether by compiled code.
        steps: Largest number of steps in one of Lightning's hooks.
        threads: Number of threads.
        reason: Why not compiled, or why one step at a time; "" if there is none.
    """

    compiled: bool
    steps: int
    threads: int
    reason: str = ""

    def __str__(self) -> str:
        kind = "compiled" + f", {self.steps} at once" * (self.steps > 1) if self.compiled else "plain"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"Training steps: {kind}, {threads}" + (f" ({self.reason})" if self.reason else "")


class Executor:
    """Executes a training's steps as is chosen before the first; process and trainer are left as they were.

    Args:
        compile: Whether by compiled code: see `choose_execution`.
        steps: Compiled, the largest number of steps in one of Lightning's hooks.

    Raises:
        ValueError: For an unknown choice, or a number below 1.
    """

    def __init__(self, compile: Compile, steps: int) -> None:
        if compile not in get_args(Compile):
            raise unknown_name("compile", compile, get_args(Compile))
        if steps < 1:
            raise ValueError(f"steps_per_execution out of range: expected 1 or more, received {steps}")
        self._compile, self._steps = compile, steps
        self.execution: Execution | None = None
        self.resumed: Execution | None = None  # what a checkpoint says, until it is chosen again
        self.step: CompiledStep | None = None
        self._threads: int | None = None  # of the process, before the training took another number

    def choose(
        self, trainer: Trainer, module: LightningModule, layer: nn.Linear, batch_size: int, obstacle: str
    ) -> Execution:
        """Call `choose_execution`, where `layer` is the largest one."""
        resumed, self.resumed = self.resumed, None
        widths = layer.in_features, layer.out_features
        return choose_execution(trainer, module, self._compile, self._steps, widths, batch_size, resumed, obstacle)

    def start(self, trainer: Trainer, execution: Execution) -> None:
        """Execute the steps so from now on, and say so."""
        self.execution, self._threads = execution, torch.get_num_threads()
        torch.set_num_threads(execution.threads)
        trainer.fit_loop._skip_backward = execution.compiled  # its gradients come with the step
        if trainer.is_global_zero and not trainer.should_stop:  # as it is after a sweep
            get_console().print(str(execution), highlight=False)

    def prepare_step(
        self, trainer: Trainer, model: nn.Module, batch_size: int | None, penalty: Callable[[], Tensor | float]
    ) -> None:
        """Make the compiled step of `model`, if steps are compiled, for the trainer's optimizer as it is."""
        self.step = None
        if self.execution is not None and self.execution.compiled:
            kind = clip_by_value if trainer.gradient_clip_algorithm == "value" else clip_by_norm
            clip = partial(kind, bound=float(bound)) if (bound := trainer.gradient_clip_val) else None
            self.step = CompiledStep(model, trainer.optimizers[0], clip, batch_size, penalty)

    def batches_at_once(self, trainer: Trainer) -> Callable[[], int] | None:
        """What says how many batches the loader's next item may hold; None for one at a time."""
        if self.execution is None or not trainer.fit_loop._skip_backward:
            return None
        return partial(batches_until_an_event, trainer, self.execution.steps)

    def stop(self, trainer: Trainer) -> None:
        """Execute steps plainly from now on, as before `start`."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        trainer.fit_loop._skip_backward = False
        self._threads, self.step = None, None


def choose_execution(
    trainer: Trainer,
    module: LightningModule,
    compile: Compile,
    steps: int,
    widths: tuple[int, int],
    batch_size: int,
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
        resumed: How the steps of a training that is resumed were executed: kept, unless `compile` contradicts it.
        obstacle: What the module itself knows that the compiled step can't do; "" for nothing.

    Raises:
        ValueError: If steps are to be compiled, always or as before, but can't be.
    """
    obstacle = obstacle or _obstacle(trainer, module)
    impatient = _first(_names_with(trainer, module, BATCH_HOOKS)) or _first(_midway_savers(trainer))
    if resumed is not None and (compile == "auto" or (compile == "always" and resumed.compiled)):
        if resumed.compiled and obstacle:
            raise ValueError(
                "the resumed training's steps can't be compiled: expected a training without what follows, as before, "
                f"or --model.compile never, whose sums differ in their last bits; received {obstacle}"
            )
        return replace(resumed, steps=1 if impatient else resumed.steps, reason="as before")
    if compile == "never":
        return Execution(False, 1, resumed.threads if resumed else torch.get_num_threads())
    if compile == "always" and obstacle:
        raise ValueError(
            f"the training step can't be compiled: expected --model.compile auto or never, or a training without "
            f"that; received {obstacle}"
        )
    if compile == "auto" and not obstacle:
        length = count_optimizer_steps(trainer)
        if trainer.strategy.root_device.type != "cpu":
            obstacle = "--model.compile auto compiles on CPUs only"
        elif length is not None and length < WORTH_COMPILING:
            obstacle = f"compiling does not pay for fewer than {WORTH_COMPILING:,} steps"
    if obstacle:
        return Execution(False, 1, torch.get_num_threads(), obstacle)
    threads = choose_threads(*widths, batch_size) if trainer.strategy.root_device.type == "cpu" else 1
    reason = f"{impatient} follows each batch" if impatient and steps > 1 else ""
    return Execution(True, 1 if impatient else steps, threads, reason)


def _obstacle(trainer: Trainer, module: LightningModule) -> str:
    """What the compiled step can't do, or ""."""
    if trainer.world_size > 1:
        return f"{trainer.world_size} devices"
    if trainer.accumulate_grad_batches > 1:
        return "accumulated gradients"
    if trainer.precision not in ("32-true", "64-true"):
        return f"precision {trainer.precision}"
    if trainer.strategy.root_device.type == "cpu" and not has_compiler():
        return "no C++ compiler"
    if isinstance(trainer.optimizers[0], LBFGS):
        return "LBFGS"
    if trainer._detect_anomaly:
        return "anomaly detection"
    for owner, base in ((module, LightningModule), (trainer.datamodule, LightningDataModule)):  # type: ignore[attr-defined]
        for hook in TRANSFER_HOOKS:
            if owner is not None and is_overridden(hook, owner, base):
                return f"{type(owner).__name__}.{hook}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, REBUILDERS):
            return type(callback).__name__
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return "frozen parameters"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters()):
        return "hooks of parameters"
    watcher = _first(_names_with(trainer, module, GRADIENT_HOOKS))
    return f"{watcher}, which follows each gradient" if watcher else ""


def _names_with(trainer: Trainer, module: LightningModule, hooks: Sequence[str]) -> Iterator[str]:
    """Names of the callbacks, and the module, that have one of the hooks."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        overrides = any(is_overridden(hook, callback, Callback) for hook in hooks)
        if overrides and not isinstance(callback, PATIENT_CALLBACKS):
            yield type(callback).__name__
    if any(is_overridden(hook, module, LightningModule) for hook in hooks):
        yield type(module).__name__


def _midway_savers(trainer: Trainer) -> Iterator[str]:
    """Names of the callbacks that save where a training is interrupted, be it between two steps of a hook."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OnExceptionCheckpoint) or getattr(callback, "save_on_exception", False):
            yield type(callback).__name__


def _first(names: Iterator[str]) -> str:
    return next(names, "")


def batches_until_an_event(trainer: Trainer, most: int) -> int:
    """Number of batches, up to `most`, before Lightning has something to do that flags ask for by step."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    in_epoch, in_all = loop.batch_progress.current.ready, loop.batch_progress.total.ready
    counts = [most, fit.max_batches - in_epoch]
    for steps in (trainer.max_steps, trainer.min_steps or 0):
        if steps > trainer.global_step:
            counts.append(steps - trainer.global_step)
    for callback in trainer.checkpoint_callbacks:
        if every := getattr(callback, "_every_n_train_steps", 0):
            counts.append(every - trainer.global_step % every)
    if trainer.log_every_n_steps:  # type: ignore[attr-defined]
        counts.append(trainer.log_every_n_steps - loop._batches_that_stepped % trainer.log_every_n_steps)  # type: ignore[attr-defined]
    if (interval := trainer.val_check_batch) not in (None, float("inf")):
        batches = in_all if trainer.check_val_every_n_epoch is None else in_epoch
        counts.append(interval - batches % interval)
    return max(1, int(min(counts)))


def one_by_one(trainer: Trainer, batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches; between two, do what Lightning does between two batches, and nothing that takes a callback."""
    loop = trainer.fit_loop.epoch_loop
    optimizer_step = loop.automatic_optimization.optim_progress.optimizer.step
    for index, batch in enumerate(batches):
        if index > 0:
            optimizer_step.increment_completed()
            loop.batch_progress.increment_processed()
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            loop.batch_progress.increment_completed()
            loop._batches_that_stepped += 1
            loop.batch_progress.increment_ready()
            loop.batch_progress.increment_started()
            optimizer_step.increment_ready()
        # Of which Lightning knows only after as many items as there are batches.
        loop.batch_progress.is_last_batch = loop.batch_progress.current.ready >= trainer.fit_loop.max_batches
        yield batch
