"""Learning-rate schedules, each a few options that build one of `torch.optim.lr_scheduler`'s."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR

from cifar_lightning.components import Component, as_component, find_class


class Schedule(ABC):
    """How the learning rate moves during training, relative to the optimizer's own."""

    #: Whether the scheduler is stepped after each optimizer step or after each epoch.
    interval: ClassVar[Literal["step", "epoch"]] = "step"

    @abstractmethod
    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """The torch scheduler for a training of `total_steps` optimizer steps; None if that is not known."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimizer's own rate throughout."""

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """The 1cycle policy (Smith 2018, https://arxiv.org/abs/1803.09820), as in Géron's `OneCycleScheduler`.

    With N steps and h = (N - (N // 10 + 1)) // 2, the rate climbs from lr / div_factor to lr in h steps, comes back
    in h more, and falls to lr / div_factor / final_div_factor in the rest. The peak is the optimizer's own rate.

    Args:
        anneal: Shape of each phase.
        div_factor: Peak rate over first rate.
        final_div_factor: First rate over last rate.
        cycle_momentum: Whether to move momentum (SGD) or beta1 (Adam and its kin) from 0.95 to 0.85 and back.
    """

    anneal: Literal["linear", "cos"] = "linear"
    div_factor: float = 10.0
    final_div_factor: float = 1000.0
    cycle_momentum: bool = False

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`.

        Raises:
            ValueError: If the number of steps is not known.
        """
        if total_steps is None:
            raise ValueError(
                "OneCycle needs to know how long the training is: expected --trainer.max_epochs or "
                "--trainer.max_steps and a data loader with a length, received neither"
            )
        n = total_steps
        h = (n - (n // 10 + 1)) // 2
        if h == 0:  # N < 3 has no room for a peak; as in Géron's formula, only the last phase is left
            start = 1 / self.div_factor
            end = start / self.final_div_factor
            return LambdaLR(optimizer, lambda step: start + (end - start) * min(step / n, 1))
        # N + 1 total steps, for torch counts the rate after the last step too: with N, a linear cycle would end on a
        # negative rate (pytorch#91765).
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=n + 1,
            pct_start=(h + 1) / (n + 1),
            three_phase=True,
            anneal_strategy=self.anneal,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            cycle_momentum=self.cycle_momentum,
        )


def schedule_component(value: Any) -> Component:
    """The primitives of a schedule: of an instance, a class, its name or path, or primitives.

    Raises:
        ValueError: For an unknown schedule or argument.
    """
    if isinstance(value, Schedule):
        value = {"class_path": type(value), "init_args": asdict(value)}  # type: ignore[call-overload]
    return as_component(value, Schedule, __name__, {})


def build_schedule(component: Component) -> Schedule:
    """The schedule that `component` stands for."""
    schedule: Schedule = find_class(component["class_path"], Schedule, __name__)(**component["init_args"])
    return schedule
