"""Executes the steps of a run: plainly, or compiled and several per trainer hook."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cifar_lightning.compiled.code_cache import SECONDS_TO_LOAD, remember, seconds_to_compile
from cifar_lightning.compiled.cuda_graph import GraphedSteps
from cifar_lightning.compiled.step import CompiledStep
from cifar_lightning.compiled.threads import Pace
from cifar_lightning.compiled.torch_internals import keeps_code
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value
from cifar_lightning.errors import unknown_name
from cifar_lightning.training.choice import Compile, Execution, choose_execution
from cifar_lightning.training.divergence import check_loss
from cifar_lightning.training.lightning_internals import batches_until_an_event, leave_out_backward, one_by_one
from cifar_lightning.training.messages import say
from cifar_lightning.training.obstacles import find_obstacle, find_watcher
from cifar_lightning.training.process_settings import MatmulPrecision, ProcessSettings
from cifar_lightning.training.step_watch import StepWatch

Batch = tuple[Tensor, Tensor]

#: The precisions that steps can be compiled for, each with its autocast dtype.
AUTOCAST = {"32-true": None, "64-true": None, "bf16-mixed": torch.bfloat16}


class Executor:
    """Executes a run's steps in the way chosen before the first step, and restores process and trainer afterwards.

    Args:
        compile: Whether to compile steps, or on a GPU capture them as CUDA graphs: "auto" where it is safe and
            worthwhile, which means on one GPU, and in runs of thousands of steps on one CPU; "always", or stop with an
            error that says why not; or "never".
        steps: Number of optimizer steps per trainer hook, at most, when steps are compiled. Trainer flags still count
            optimizer steps.
        float32_matmul_precision: Precision of products of float32 matrices during training and its validations, as in
            `torch.set_float32_matmul_precision`. "high" rounds their factors to TF32 on recent NVIDIA GPUs, which is
            faster; "medium" rounds to bfloat16 where that is faster, on some CPUs too. By default, torch's own setting:
            "highest", unless a program changes it.

    Raises:
        ValueError: If a choice is unknown or the number is below 1.
    """

    def __init__(
        self, compile: Compile = "auto", steps: int = 50, float32_matmul_precision: MatmulPrecision | None = None
    ) -> None:
        if compile not in get_args(Compile):
            raise unknown_name("compile", compile, get_args(Compile))
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if float32_matmul_precision not in (None, *get_args(MatmulPrecision)):
            raise unknown_name("float32_matmul_precision", float32_matmul_precision, get_args(MatmulPrecision))
        self._compile, self._steps, self._matmul_precision = compile, steps, float32_matmul_precision
        self.execution: Execution | None = None
        self.resumed: Execution | None = None  # from a checkpoint, until the next choice
        self.step: CompiledStep | GraphedSteps | None = None
        self._device_of_images: torch.device | None = None
        self._watch: StepWatch | None = None
        self._last_batch: tuple[Tensor, Tensor] | None = None
        self._pace, self._is_on = Pace(), False
        self._recipe, self._seconds = "", 0.0  # estimated time of the first step, if it is compiled
        self._process = ProcessSettings()

    @property
    def must_compile(self) -> bool:
        """Whether failing to compile is an error."""
        return self._compile == "always"

    def choose(
        self, trainer: Trainer, module: LightningModule, layers: Sequence[nn.Linear], batch_size: int, obstacle: str
    ) -> Execution:
        """Call `choose_execution` for a network with these linear layers, the first being the largest."""
        resumed, self.resumed = self.resumed, None
        widths = layers[0].in_features, layers[0].out_features
        precision = self._matmul_precision or (resumed.matmul_precision if resumed else None)
        self._recipe = f"{_recipe(trainer, module, batch_size)} {precision}"

        def seconds(threads: int) -> float:
            return seconds_to_compile(f"{self._recipe} {threads}", len(layers))

        execution = choose_execution(
            trainer, module, self._compile, self._steps, widths, batch_size, seconds, resumed, obstacle
        )
        self._seconds = 0.0 if execution.graphs else seconds(execution.threads)
        return replace(execution, matmul_precision=precision)

    def start(self, trainer: Trainer, execution: Execution) -> None:
        """Execute steps this way from now on, and say so."""
        self.execution, self._is_on = execution, True
        self._device_of_images = trainer.strategy.root_device if execution.graphs else None
        self._process.change(execution.threads, execution.matmul_precision)
        leave_out_backward(trainer, execution.compiled)  # a compiled step includes the gradients
        if not trainer.should_stop:  # as after a learning-rate sweep
            _say(trainer, str(execution))

    def device_for(self, size: int) -> torch.device | None:
        """The best device for training images of so many bytes; None for leaving them where they are."""
        device = self._device_of_images
        if device is None or device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]:
            return device
        say(f"Training images: in the computer's memory, since {size / 2**30:.1f} GiB would fill too much of the GPU's")
        return None

    def prepare_step(
        self,
        trainer: Trainer,
        model: nn.Module,
        batch_size: int | None,
        penalty: Callable[[nn.Module], Tensor] | None,
        obstacle: str,
        constrain: Callable[[], None] | None = None,
    ) -> None:
        """Create the compiled step of `model`, if steps are compiled, for the trainer's optimizer in its current state.

        Raises:
            ValueError: If steps must be compiled and a callback prevents it.
        """
        if self.execution is None or not self.execution.compiled:
            return
        module = trainer.lightning_module
        if obstacle := obstacle or find_obstacle(trainer, module):
            if self.must_compile:
                raise ValueError(
                    f"cannot compile the training step after a callback has changed it: got {obstacle}. Remove the "
                    "callback, or pass --execution.compile auto or never"
                )
            self.train_plainly(trainer, obstacle)
            return
        if self.execution.steps > 1 and (watcher := find_watcher(trainer, module)):
            self.execution = replace(self.execution, steps=1, reason=f"{watcher} follows each batch")
        (optimizer,) = trainer.optimizers
        kind = clip_by_value if trainer.gradient_clip_algorithm == "value" else clip_by_norm
        clip = partial(kind, bound=float(bound)) if (bound := trainer.gradient_clip_val) else None
        on_failure = None if self.must_compile else partial(_say_why_plain, trainer)
        autocast = AUTOCAST[trainer.precision]
        step = CompiledStep(model, optimizer, clip, batch_size, penalty, on_failure, autocast)
        self.step, self._pace = GraphedSteps(step, constrain) if self.execution.graphs else step, Pace()
        self._watch = StepWatch(trainer, module, model, optimizer if self.step.updates_itself else None)
        self.announce_compiler(trainer)

    def announce_compiler(self, trainer: Trainer) -> None:
        """Say how long the first step will take, unless its code is in the cache."""
        if self._seconds > SECONDS_TO_LOAD:
            kept = "once; cached for later runs" if keeps_code() else "in every run, since caching is disabled"
            _say(trainer, f"Compiling the training step, about {self._seconds:.0f} s ({kept})")

    def look_again(self, trainer: Trainer) -> None:
        """Train plainly from the next batch on if something that the compiled code depends on has changed."""
        if self._watch is not None and (change := self._watch.find_change()):
            self.train_plainly(trainer, f"{change} has changed")

    def train_plainly(self, trainer: Trainer, reason: str) -> None:
        """Let Lightning run the steps from the next batch on."""
        assert self.execution is not None, "it was chosen"
        self.execution = replace(self.execution, compiled=False, steps=1, reason=reason)
        self._close(trainer)
        start = f"From step {trainer.global_step:,} on: " if trainer.global_step else ""
        _say(trainer, f"{start}{self.execution}")

    def _close(self, trainer: Trainer) -> None:
        if self.step is not None:
            self.step.close()
        self.step = self._watch = self._last_batch = None
        leave_out_backward(trainer, False)

    def run(
        self, trainer: Trainer, batches: Iterable[Batch], soften: Callable[[Tensor, Tensor], Batch]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Train on the batches, mapped by `soften`; yield loss, logits and labels of each before Lightning counts it.

        CUDA graphs yield several steps at once: the last loss, and all logits and labels.
        """
        assert self.step is not None, "steps are compiled"
        if isinstance(self.step, GraphedSteps):
            for loss, logits, labels, last in run_graphs(self.step, one_by_one(trainer, batches), soften):
                check_loss(trainer.lightning_module, loss, last)
                yield loss, logits, labels
            return
        start, count = time.perf_counter(), 0
        for images, labels in one_by_one(trainer, batches):
            inputs, targets = soften(images, labels)
            loss, logits = self.step(inputs, targets)
            check_loss(trainer.lightning_module, loss, inputs, self._last_batch)
            self._last_batch = inputs, targets
            yield loss, logits, labels
            count += 1
        self.remember_code(self.step.entry)
        self.take_time(trainer, (time.perf_counter() - start) / count)

    def remember_code(self, entry: Path | None) -> None:
        """Record that the code of this run's steps is in the cache, in `entry`, if it is."""
        if self._recipe and entry is not None:
            remember(f"{self._recipe} {torch.get_num_threads()}", entry)
            self._recipe = ""  # once is enough

    def take_time(self, trainer: Trainer, seconds: float) -> None:
        """Switch to one thread if steps, now taking so many seconds each, have become much slower with several."""
        if self.execution is not None and self.execution.threads > 1 and self._pace.has_dropped(seconds):
            torch.set_num_threads(1)
            self.execution = replace(self.execution, threads=1, reason="other processes need the cores")
            _say(trainer, f"From step {trainer.global_step:,} on: {self.execution}")

    def batches_at_once(self, trainer: Trainer) -> int:
        """Number of batches that the loader should yield next."""
        if not self._is_on or self.execution is None or self.execution.steps == 1:
            return 1
        self.look_again(trainer)  # otherwise a plain step might get several batches
        return batches_until_an_event(trainer, self.execution.steps)

    def stop(self, trainer: Trainer) -> None:
        """Execute steps plainly from now on, as before `start`."""
        self._process.restore()
        self._device_of_images, self._is_on = None, False
        self._close(trainer)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the step out of a copy or a pickle: it belongs to these parameters and this trainer."""
        nothing = dict.fromkeys(("step", "_watch", "_last_batch"))
        return vars(self) | nothing | {"_is_on": False, "_process": ProcessSettings()}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Save how steps are executed in a checkpoint."""
        if self.execution is not None:
            checkpoint["execution"] = asdict(self.execution)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """At the next choice, execute steps as the run that wrote the checkpoint did."""
        if "execution" in checkpoint:
            self.resumed = Execution(**checkpoint["execution"])


def run_graphs(
    steps: GraphedSteps, batches: Iterable[Batch], soften: Callable[[Tensor, Tensor], Batch]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Train on the batches, mapped by `soften`, several at once.

    Yields:
        The last loss, all logits and labels, and the last images.
    """
    seen: list[Batch] = []

    def softened() -> Iterator[Batch]:
        for batch in batches:
            seen.append(batch)
            yield soften(*batch)

    for loss, logits in steps.run_all(softened()):
        yield loss, logits, torch.cat([labels for _, labels in seen], -1), seen[-1][0]
        seen.clear()


class StopAtException(Callback):
    """Restores process, trainer and network when training ends with an exception or Ctrl-C.

    Lightning notifies only callbacks of exceptions, not the module.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Execute steps plainly from now on."""
        stop: Any = getattr(pl_module, "stop_steps", None)
        if stop is not None:  # the trainer may have another module by now
            stop()

    @classmethod
    def once(cls, trainer: Trainer) -> list[Callback]:
        """The callback for a module to add, or nothing if the trainer already has one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(callback, cls) for callback in callbacks) else [cls()]


def _recipe(trainer: Trainer, module: LightningModule, batch_size: int) -> str:
    """A text that identifies the code of a step before it exists: everything but learning rates and threads."""
    hparams = {name: value for name, value in module.hparams.items() if name not in ("lr", "schedule")}
    clipping = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    cls, groups = type(module), [sorted(group) for each in trainer.optimizers for group in each.param_groups]
    shapes = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
    return repr([cls.__module__, cls.__qualname__, hparams, batch_size, trainer.precision, clipping, groups, shapes])


def _say_why_plain(trainer: Trainer, error: Exception) -> None:
    _say(trainer, f"Training steps: plain, because torch could not compile them: {str(error).splitlines()[0]}")


def _say(trainer: Trainer, line: str) -> None:
    if trainer.is_global_zero:
        say(line)
