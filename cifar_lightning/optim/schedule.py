"""What a schedule is, and what several of them check."""

from abc import ABC, abstractmethod
from math import inf
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Schedule(ABC):
    """How the learning rate moves during training, relative to the optimizer's own."""

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """Whether the scheduler is stepped after each optimizer step or after each epoch."""
        return "step"

    @property
    def monitor(self) -> str | None:
        """The metric that the scheduler is stepped with, if any."""
        return None

    @abstractmethod
    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """The torch scheduler for a training of `total_steps` optimizer steps, which is None if unknown."""


def check_positive(schedule: Schedule, *names: str) -> None:
    """Check that attributes of a schedule are positive numbers, or None.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        value = getattr(schedule, name)
        if value is not None and not 0 < value < inf:
            raise ValueError(f"{name} out of range: expected a positive number, received {value}")


def require_length(total_steps: int | None, schedule: str) -> int:
    """The number of steps, for a schedule that can't do without it.

    Args:
        total_steps: Number of optimizer steps of the training; None if it is not known.
        schedule: The schedule's name, for the message.

    Raises:
        ValueError: If the number is not known, or is 0.
    """
    if total_steps is None or total_steps < 1:
        received = "an unknown number" if total_steps is None else total_steps
        raise ValueError(
            f"{schedule} needs to know how long the training is: expected at least one optimizer step, received "
            f"{received}"
        )
    return total_steps
