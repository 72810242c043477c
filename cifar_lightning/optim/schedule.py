"""The base class of learning-rate schedules, checks they share, and simulation of a schedule without training."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Step = TypeVar("Step")


class Schedule(ABC):
    """How the learning rate changes during training, relative to the optimizer's."""

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
        """Build the torch scheduler for a run of `total_steps` optimizer steps, None if the number is unknown."""

    def plot(self, steps: int, lr: float = 1.0, steps_per_epoch: int = 1) -> "Figure":
        """Plot the learning rate, and SGD's momentum if it changes. A notebook displays the returned figure.

        A schedule that follows a metric is plotted as if the metric never improved.

        Args:
            steps: Number of optimizer steps.
            lr: The optimizer's learning rate.
            steps_per_epoch: Number of steps in an epoch, for schedules that count epochs.

        Raises:
            ValueError: If `steps` or `steps_per_epoch` is less than 1.
        """
        from cifar_lightning.optim.rate_plots import draw_schedule

        if steps < 1 or steps_per_epoch < 1:
            raise ValueError(
                "nothing to plot: steps and steps_per_epoch must be at least 1, got "
                f"steps={steps}, steps_per_epoch={steps_per_epoch}"
            )
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr, momentum=0.9)
        every = steps_per_epoch if self.interval == "epoch" else 1
        due = [(self.build(optimizer, steps), lambda step: step % every == 0)]
        rates, momenta = simulate_steps(optimizer, due, range(1, steps + 1))
        epochs = [step / steps_per_epoch for step in range(steps + 1)]
        return draw_schedule(rates, momenta, epochs, title=f"{self!r}, {steps:,} steps")

    def __repr__(self) -> str:
        defaults = _defaults(self)
        chosen = [f"{name}={value!r}" for name, value in vars(self).items() if value != defaults.get(name, MISSING)]
        return f"{type(self).__name__}({', '.join(chosen)})"


def _defaults(schedule: Schedule) -> dict[str, Any]:
    if not is_dataclass(schedule):
        return {}
    return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(schedule)}


def simulate_steps(
    optimizer: Optimizer, schedulers: Sequence[tuple[Any, Callable[[Step], bool]]], steps: Iterable[Step]
) -> tuple[list[float], list[float]]:
    """Compute the learning rate and momentum of each step without training.

    A scheduler that follows a metric is stepped as if the metric never improved.

    Args:
        optimizer: The optimizer; its first parameter group is read.
        schedulers: Each with a function that says whether the scheduler is stepped after a given step.
        steps: The steps, in any form those functions take.
    """
    rates, momenta = [], []
    with warnings.catch_warnings():  # the optimizer takes no step here
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`")
        for step in steps:
            group = optimizer.param_groups[0]
            rates.append(float(group["lr"]))
            momenta.append(float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0)))
            for scheduler, is_due in schedulers:
                if is_due(step):
                    scheduler.step(*[0.0] * isinstance(scheduler, ReduceLROnPlateau))
    return rates, momenta


def check_positive(schedule: Schedule, *names: str) -> None:
    """Check that attributes of a schedule are positive numbers, or None.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        value = getattr(schedule, name)
        if value is not None and not 0 < value < inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


def require_length(total_steps: int | None, schedule: str) -> int:
    """Return the number of steps, for a schedule that can't do without it.

    Args:
        total_steps: Number of optimizer steps of the run; None if unknown.
        schedule: The schedule's name, for the message.

    Raises:
        ValueError: If the number is unknown or 0.
    """
    if total_steps is None or total_steps < 1:
        given = "an unknown number" if total_steps is None else total_steps
        raise ValueError(
            f"{schedule} needs to know the length of the run: expected at least one optimizer step, got {given}"
        )
    return total_steps
