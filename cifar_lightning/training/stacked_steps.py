"""The steps of several classifiers at once: in one compiled stack, or by torch and Lightning."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.compiled.cuda_graph import GraphedSteps
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.stack_template import StackedForward
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.execution import Executor, run_graphs
from cifar_lightning.training.lightning_internals import one_by_one
from cifar_lightning.training.messages import say
from cifar_lightning.training.obstacles import find_obstacle
from cifar_lightning.training.step_watch import StepWatch

Batch = tuple[Tensor, Tensor]


class StackedSteps:
    """Runs the steps of classifiers that differ only in values.

    Images and labels are one batch for all, (B, ...), or one per batch order, (S, B, ...).

    Args:
        executor: Chooses whether steps are compiled.
        classifiers: The classifiers.
        orders: The index of each classifier's batch order.
    """

    def __init__(self, executor: Executor, classifiers: Sequence[MLPClassifier], orders: Sequence[int]) -> None:
        self._executor, self._classifiers, self._orders = executor, list(classifiers), list(orders)
        self._stack: Stack | None = None
        self._graphs: GraphedSteps | None = None  # the stack's CUDA graphs
        self._watches: dict[int, StepWatch] = {}  # for the classifiers that the stack trains
        self._forward: tuple[list[int], StackedForward] | None = None

    @property
    def are_whole(self) -> bool:
        """Whether a step includes gradients and update, which Lightning handles otherwise."""
        return self._stack is not None

    def choose(self, trainer: Trainer, module: LightningModule, batch_size: int) -> None:
        """Choose how steps are executed, and say so."""
        linears, count = self._classifiers[0].network.linears(), len(self._classifiers)
        obstacle = f"precision {trainer.precision} of a stack" if "mixed" in trainer.precision else ""
        execution = self._executor.choose(trainer, module, linears, count * batch_size, obstacle)
        say(f"{count} networks trained as one")
        self._executor.start(trainer, execution)

    def batches_at_once(self, trainer: Trainer) -> int:
        """Number of batches that the loader should yield next: several orders get no more images than one."""
        return max(1, self._executor.batches_at_once(trainer) // len(set(self._orders)))

    def prepare(self, trainer: Trainer, module: LightningModule, optimizers: Sequence[Optimizer]) -> None:
        """Create the stack, if steps are compiled, for the optimizers in their current state.

        Raises:
            ValueError: If steps must be compiled and a callback prevents it.
        """
        execution = self._executor.execution
        if execution is None or not execution.compiled:
            return
        if obstacle := find_obstacle(trainer, module):
            if self._executor.must_compile:
                raise ValueError(
                    f"cannot compile the training step after a callback has changed it: got {obstacle}. Remove the "
                    "callback, or pass --execution.compile auto or never"
                )
            self._executor.train_plainly(trainer, obstacle)
            return
        kind = clip_by_value if trainer.gradient_clip_algorithm == "value" else clip_by_norm
        clip = partial(kind, bound=float(bound)) if (bound := trainer.gradient_clip_val) else None
        networks = [each.network for each in self._classifiers]
        penalties = [(network.l1, network.l2) for network in networks]
        on_failure = None if self._executor.must_compile else self._say_why_plain
        self._stack = Stack(networks, optimizers, not execution.graphs, clip, penalties, on_failure)
        self._graphs = GraphedSteps(self._stack, self._constrain) if execution.graphs else None
        self._watches = {
            index: StepWatch(trainer, module, network, optimizer if self._stack.updates_itself else None)
            for index, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True))
        }
        self._executor.announce_compiler(trainer)

    def _constrain(self) -> None:
        for each in self._classifiers:
            each.network.constrain_()

    def _say_why_plain(self, error: Exception) -> None:
        reason = f"torch could not compile them: {str(error).splitlines()[0]}"
        assert self._executor.execution is not None, "it was chosen"
        self._executor.execution = replace(self._executor.execution, compiled=False, steps=1, reason=reason)
        say(str(self._executor.execution))

    def run(self, trainer: Trainer, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run whole steps, one per batch.

        Yields:
            Losses (M,), logits (M, B, num_classes) and labels, before Lightning counts the step.

        Raises:
            ValueError: If something that the compiled code depends on has changed.
        """
        assert self._stack is not None, "steps are whole"
        self._refuse_change()
        every = range(len(self._classifiers))
        if self._graphs is not None:
            soften = partial(self._of_each, active=every)
            for losses, logits, labels, _ in run_graphs(self._graphs, one_by_one(trainer, batches), soften):
                yield losses, logits, labels
            return
        start, count = time.perf_counter(), 0
        for images, labels in one_by_one(trainer, batches):
            losses, logits = self._stack.step(*self._of_each(images, labels, every))
            yield losses, logits, labels
            count += 1
        self._executor.remember_code(self._stack.entry if self._stack else None)
        self._executor.take_time(trainer, (time.perf_counter() - start) / count)

    def _refuse_change(self) -> None:
        for watch in self._watches.values():
            if change := watch.find_change():
                raise ValueError(
                    f"the training step has changed since it was compiled: {change} is different. Remove the callback "
                    "that changes it, or pass --execution.compile never"
                )

    def compute(self, images: Tensor, labels: Tensor, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The losses (A,) and logits (A, B, num_classes) of the active classifiers, with gradients."""
        if self._forward is None or self._forward[0] != list(active):
            self._forward = list(active), StackedForward([self._classifiers[index].network for index in active])
        inputs, targets = self._of_each(images, labels, active)
        is_shared = labels.ndim == 1
        logits = self._forward[1](inputs, is_shared)
        losses = [
            F.cross_entropy(logits[i], targets if is_shared else targets[i])
            + self._classifiers[index].network.penalty()
            for i, index in enumerate(active)
        ]
        return torch.stack(losses), logits

    def _of_each(self, images: Tensor, labels: Tensor, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Standardized images and targets: one batch if it is shared, or else one per active classifier."""
        first = self._classifiers[0]
        images, targets = first.soft_labels(images, labels)
        inputs = first.standardize(images.flatten(0, -4)).view(images.shape)
        if labels.ndim == 1:
            return inputs, targets
        orders = [self._orders[index] for index in active]
        if orders == list(range(len(inputs))):  # copying them would take a fifth of a step of eight best/deep
            return inputs, targets
        return inputs[orders], targets[orders]

    def labels_of(self, labels: Tensor, index: int) -> Tensor:
        """One classifier's labels (B,)."""
        return labels if labels.ndim == 1 else labels[self._orders[index]]

    def release(self, index: int) -> None:
        """Stop stepping a classifier."""
        if self._stack is not None:
            self._stack.release(index)
            self._watches.pop(index, None)  # its tensors move to their own memory

    def stop(self, trainer: Trainer) -> None:
        """Restore trainer, process and networks."""
        if self._stack is not None:
            self._stack.close()
        self._stack = self._graphs = self._forward = None
        self._watches = {}
        self._executor.stop(trainer)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the stack out of a copy: it belongs to these parameters."""
        return vars(self) | {"_stack": None, "_graphs": None, "_forward": None, "_watches": {}}
