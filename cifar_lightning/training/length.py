"""The length of a run in optimizer steps, found before it starts."""

from itertools import chain, islice, repeat
from math import ceil
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from cifar_lightning.errors import refuse_more
from cifar_lightning.training.lightning_internals import batches_per_epoch


def count_optimizer_steps(trainer: Trainer) -> int | None:
    """Number of optimizer steps of a whole run, or None if it can't be known.

    `trainer.estimated_stepping_batches` would set up the data loader before a resume restores it, and training would
    silently continue with the wrong batches.
    """
    limits = [trainer.max_steps] if trainer.max_steps != -1 else []
    batches = batches_per_epoch(trainer)
    if batches is not None and trainer.max_epochs not in (None, -1):
        limits.append(sum(ceil(batches / each) * epochs for each, epochs in _accumulations(trainer)))
    return min(limits, default=None)


#: The most steps that are listed one by one.
MOST_PLANNED = 10_000_000


class PlannedStep(NamedTuple):
    """A future optimizer step."""

    epoch: int
    batch: int  # the last batch of the epoch that it uses, counted from 1
    batches: int  # in the epoch


def planned_steps(trainer: Trainer) -> list[PlannedStep] | None:
    """The optimizer steps of a whole run, or None if they can't be known.

    Raises:
        ValueError: If there are more than `MOST_PLANNED`.
    """
    batches, total = batches_per_epoch(trainer), count_optimizer_steps(trainer)
    if batches is None or total is None:
        return None
    refuse_more(MOST_PLANNED, total, "steps to list")
    every = chain.from_iterable(repeat(each, epochs) for each, epochs in _accumulations(trainer))
    steps = (
        PlannedStep(epoch, min(end, batches), batches)
        for epoch, each in enumerate(every)
        for end in range(each, batches + each, each)
    )
    return list(islice(steps, total))


def _accumulations(trainer: Trainer) -> list[tuple[int, int]]:
    """Numbers of batches per optimizer step, each with the number of epochs for which it applies."""
    # (Without a limit on epochs, there are at most as many epochs as steps.)
    last = trainer.max_steps if trainer.max_epochs in (None, -1) else trainer.max_epochs
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            starts = [epoch for epoch in sorted(callback.scheduling) if epoch < last]
            ends = [*starts[1:], last]
            return [(callback.scheduling[start], end - start) for start, end in zip(starts, ends, strict=True)]
    return [(trainer.accumulate_grad_batches, last)]
