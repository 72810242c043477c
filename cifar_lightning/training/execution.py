"""How the steps of a training are executed: plainly, or compiled and several in one of Lightning's hooks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import get_console
from torch import Tensor, nn

from cifar_lightning.compiled.code_cache import remember, seconds_to_compile
from cifar_lightning.compiled.hooks import has_hooks
from cifar_lightning.compiled.step import CompiledStep
from cifar_lightning.compiled.threads import Pace, choose_threads
from cifar_lightning.compiled.torch_internals import is_newer_than_tested, missing_names
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value
from cifar_lightning.compiled.watch import Watch
from cifar_lightning.errors import unknown_name
from cifar_lightning.training.divergence import check_loss
from cifar_lightning.training.lightning_internals import (
    batches_until_an_event,
    count_optimizer_steps,
    leave_out_backward,
    leaves_out_backward,
    one_by_one,
)
from cifar_lightning.training.obstacles import STEP_METHODS, find_obstacle, find_watcher
from cifar_lightning.training.plain_step import PlainStep

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
        compile: Whether by compiled code: "auto" for wherever it is safe and worthwhile, which is in trainings of
            thousands of steps on one CPU; "always", or an error says why not; or "never".
        steps: Compiled, the largest number of optimizer steps in one of Lightning's hooks. Trainer flags count
            optimizer steps all the same.

    Raises:
        ValueError: For an unknown choice, or a number below 1.
    """

    def __init__(self, compile: Compile = "auto", steps: int = 50) -> None:
        if compile not in get_args(Compile):
            raise unknown_name("compile", compile, get_args(Compile))
        if steps < 1:
            raise ValueError(f"steps out of range: expected 1 or more, received {steps}")
        self._compile, self._steps = compile, steps
        self.execution: Execution | None = None
        self.resumed: Execution | None = None  # what a checkpoint says, until it is chosen again
        self.step: CompiledStep | PlainStep | None = None
        self._watch: Watch | None = None
        self._pace = Pace()
        self._recipe = ""
        self._threads: int | None = None  # of the process, before the training took another number

    def choose(
        self, trainer: Trainer, module: LightningModule, layers: Sequence[nn.Linear], batch_size: int, obstacle: str
    ) -> Execution:
        """Call `choose_execution`, for a network of these linear layers, of which the first is the largest."""
        resumed, self.resumed = self.resumed, None
        widths = layers[0].in_features, layers[0].out_features
        self._recipe = _recipe(trainer, module, batch_size)
        seconds = seconds_to_compile(self._recipe, len(layers))
        return choose_execution(
            trainer, module, self._compile, self._steps, widths, batch_size, seconds, resumed, obstacle
        )

    def start(self, trainer: Trainer, execution: Execution) -> None:
        """Execute the steps so from now on, and say so."""
        self.execution, self._threads = execution, torch.get_num_threads()
        torch.set_num_threads(execution.threads)
        leave_out_backward(trainer, execution.compiled)  # its gradients come with the step
        if not trainer.should_stop:  # as it is after a sweep
            _say(trainer, str(execution))

    def prepare_step(
        self, trainer: Trainer, model: nn.Module, batch_size: int | None, penalty: Callable[[nn.Module], Tensor] | None
    ) -> None:
        """Make the compiled step of `model`, if steps are compiled, for the trainer's optimizer as it is."""
        self.step = None
        if self.execution is None or not self.execution.compiled:
            return
        (optimizer,) = trainer.optimizers
        if obstacle := find_obstacle(trainer, trainer.lightning_module):  # which a callback has put there meanwhile
            self._give_up(trainer, obstacle, penalty and partial(penalty, model))
            return
        kind = clip_by_value if trainer.gradient_clip_algorithm == "value" else clip_by_norm
        clip = partial(kind, bound=float(bound)) if (bound := trainer.gradient_clip_val) else None
        say = None if self._compile == "always" else partial(_say_why_plain, trainer)
        self.step = CompiledStep(model, optimizer, clip, batch_size, penalty, say)
        self._watch, self._pace = Watch(model, optimizer if self.step.updates_itself else None), Pace()

    def _give_up(self, trainer: Trainer, obstacle: str, penalty: Callable[[], Tensor | float] | None) -> None:
        """Execute steps plainly, whose batches may come several at once.

        Raises:
            ValueError: If they are to be compiled always.
        """
        if self._compile == "always":
            raise ValueError(
                "the training step can't be compiled any more: expected callbacks that leave it as it was, or "
                f"--execution.compile auto or never; received {obstacle}"
            )
        assert self.execution is not None, "it was chosen"
        self.step, self._watch = PlainStep(trainer, trainer.lightning_module, penalty or float), None
        self.execution = replace(self.execution, compiled=False, steps=1, reason=obstacle)
        _say(trainer, str(self.execution))

    def run(
        self,
        trainer: Trainer,
        module: LightningModule,
        batches: Iterable[tuple[Tensor, Tensor]],
        penalty: Callable[[], Tensor | float],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Train on one batch after another; yield loss, logits and labels of each, before Lightning counts it."""
        self._look_again(trainer, module, penalty)
        start, count = time.perf_counter(), 0
        for images, labels in one_by_one(trainer, batches):
            assert self.step is not None, "there is one until the training ends"
            loss, logits = self.step(images, labels)
            check_loss(module, loss, images)
            yield loss, logits, labels
            count += 1
        is_first = trainer.global_step < count  # the last of them is not counted yet
        if is_first and isinstance(self.step, CompiledStep) and self.step.is_compiled:
            remember(self._recipe)
        self._take_time(trainer, (time.perf_counter() - start) / count)

    def _look_again(self, trainer: Trainer, module: LightningModule, penalty: Callable[[], Tensor | float]) -> None:
        """Execute steps plainly from now on if the network or the optimizer is not what the step was compiled for."""
        if self._watch is None or self.step is None or self.execution is None:
            return
        own = [name for name in ("forward", *STEP_METHODS) if name in vars(module)]
        own += ["hooks"] * has_hooks(module)
        change = f"the module's {own[0]}" if own else self._watch.find_change()
        if not change:
            return
        self.step.close()
        self.step, self._watch = PlainStep(trainer, module, penalty), None
        self.execution = replace(self.execution, compiled=False, steps=1, reason=f"{change} has changed")
        _say(trainer, f"From step {trainer.global_step:,} on: {self.execution}")

    def _take_time(self, trainer: Trainer, seconds: float) -> None:
        """Go on with one thread if steps, which take so many seconds each, have become much slower with several."""
        if self.execution is not None and self.execution.threads > 1 and self._pace.has_dropped(seconds):
            torch.set_num_threads(1)
            self.execution = replace(self.execution, threads=1, reason="other processes need the cores")
            _say(trainer, f"From step {trainer.global_step:,} on: {self.execution}")

    def batches_at_once(self, trainer: Trainer) -> Callable[[], int] | None:
        """What says how many batches the loader's next item may hold; None for one at a time."""
        if self.execution is None or not leaves_out_backward(trainer):
            return None
        return partial(batches_until_an_event, trainer, self.execution.steps)

    def stop(self, trainer: Trainer) -> None:
        """Execute steps plainly from now on, as before `start`."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        if self.step is not None:
            self.step.close()
        leave_out_backward(trainer, False)
        self._threads, self.step, self._watch = None, None, None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a module that is saved as a whole, has no step: that is of these parameters and this trainer."""
        return vars(self) | {"step": None, "_watch": None, "_threads": None}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint how the steps are executed."""
        if self.execution is not None:
            checkpoint["execution"] = asdict(self.execution)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Execute steps as the training that wrote the checkpoint did, from when they are chosen again."""
        if "execution" in checkpoint:
            self.resumed = Execution(**checkpoint["execution"])


def choose_execution(
    trainer: Trainer,
    module: LightningModule,
    compile: Compile,
    steps: int,
    widths: tuple[int, int],
    batch_size: int,
    seconds: float = 0.0,
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
        seconds: How long it takes until there is compiled code.
        resumed: How the steps of a training that is resumed were executed: kept, unless `compile` contradicts it.
        obstacle: What the module itself knows that the compiled step can't do; "" for nothing.

    Raises:
        ValueError: If steps are to be compiled, always or as before, but can't be.
    """
    obstacle = obstacle or find_obstacle(trainer, module)
    impatient = find_watcher(trainer, module)
    if resumed is not None and (compile == "auto" or (compile == "always" and resumed.compiled)):
        if resumed.compiled and obstacle:
            raise ValueError(
                "the resumed training's steps can't be compiled: expected a training without what follows, as before, "
                f"or --execution.compile never, whose sums differ in their last bits; received {obstacle}"
            )
        return replace(resumed, steps=1 if impatient else resumed.steps, reason="as before")
    if compile == "never":
        return Execution(False, 1, resumed.threads if resumed else torch.get_num_threads())
    if compile == "always":
        obstacle = obstacle or _missing()
    if compile == "always" and obstacle:
        raise ValueError(
            f"the training step can't be compiled: expected --execution.compile auto or never, or a training without "
            f"that; received {obstacle}"
        )
    if compile == "auto":
        obstacle = obstacle or _reason_to_train_plainly(trainer, seconds)
    if obstacle:
        return Execution(False, 1, torch.get_num_threads(), obstacle)
    threads = choose_threads(*widths, batch_size) if trainer.strategy.root_device.type == "cpu" else 1
    reason = f"{impatient} follows each batch" if impatient and steps > 1 else ""
    return Execution(True, 1 if impatient else steps, threads, reason)


def _missing() -> str:
    """What torch lacks for compiled steps; "" for nothing."""
    names = missing_names()
    return f"torch {torch.__version__} without {', '.join(names)}" if names else ""


def _recipe(trainer: Trainer, module: LightningModule, batch_size: int) -> str:
    """What decides which code a step needs, as far as it is known before there is one: all but rates."""
    hparams = {name: value for name, value in module.hparams.items() if name not in ("lr", "schedule")}
    clipping = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    return repr([type(module).__qualname__, hparams, batch_size, trainer.precision, clipping])


def _reason_to_train_plainly(trainer: Trainer, seconds: float) -> str:
    """Why "auto" does not compile a step that could be compiled; "" for no reason."""
    if trainer.strategy.root_device.type != "cpu":
        return "--execution.compile auto compiles on CPUs only"
    length = count_optimizer_steps(trainer)
    if length is not None and length * SAVED_SECONDS < seconds:
        return f"compiling may take {seconds:.0f} s, more than {length:,} steps win back"
    if is_newer_than_tested():
        return f"compiled steps are not tested with torch {torch.__version__}; --execution.compile always tries them"
    return _missing()


def _say_why_plain(trainer: Trainer, error: Exception) -> None:
    _say(trainer, f"Training steps: plain, for torch could not compile them: {str(error).splitlines()[0]}")


def _say(trainer: Trainer, line: str) -> None:
    if trainer.is_global_zero:
        get_console().print(line, highlight=False)
