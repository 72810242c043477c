"""Learning-rate schedules, each a few options that build one of `torch.optim.lr_scheduler`'s."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from math import cos, inf, pi
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from cifar_lightning.optim.class_paths import Component, as_component, find_class


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
        """The torch scheduler for a training of `total_steps` optimizer steps; None if that is not known."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimizer's own rate throughout."""

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """The 1cycle policy (Smith 2018, https://arxiv.org/abs/1803.09820), by default as in Géron's `OneCycleScheduler`.

    With N steps and h = (N - (N // 10 + 1)) // 2, the rate climbs from max_lr / div_factor to max_lr in h steps,
    comes back in h more, and falls to max_lr / div_factor / final_div_factor in the rest.

    Args:
        max_lr: The peak; by default the optimizer's own rate.
        anneal: Shape of each phase.
        pct_start: Share of the steps in which the rate climbs, and again in which it comes back; by default h / N.
        div_factor: Peak rate over first rate.
        final_div_factor: First rate over last rate.
        cycle_momentum: Whether to move momentum (SGD) or beta1 (Adam and its kin) from `max_momentum` to
            `base_momentum` and back.
        base_momentum: Momentum at the peak rate.
        max_momentum: Momentum at the first and last rate.
    """

    max_lr: float | None = None
    anneal: Literal["linear", "cos"] = "linear"
    pct_start: float | None = None
    div_factor: float = 10.0
    final_div_factor: float = 1000.0
    cycle_momentum: bool = False
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.pct_start is not None and not 0 < self.pct_start <= 0.5:
            raise ValueError(f"pct_start out of range: expected 0 < pct_start <= 0.5, received {self.pct_start}")
        _check_positive(self, "max_lr", "div_factor", "final_div_factor")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`.

        Raises:
            ValueError: If the number of steps is not known.
        """
        n = _known(total_steps, "OneCycle")
        h = (n - (n // 10 + 1)) // 2 if self.pct_start is None else round(self.pct_start * n)
        peaks = [self.max_lr or group["lr"] for group in optimizer.param_groups]
        if h == 0:  # N < 3 has no room for a peak; as in Géron's formula, only the last phase is left
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak
            start = 1 / self.div_factor
            end = start / self.final_div_factor
            return LambdaLR(optimizer, lambda step: start + (end - start) * min(step / n, 1))
        # N + 1 total steps, for torch counts the rate after the last step too: with N, a linear cycle would end on a
        # negative rate (pytorch#91765).
        return OneCycleLR(
            optimizer,
            max_lr=peaks,
            total_steps=n + 1,
            pct_start=(h + 1) / (n + 1),
            three_phase=True,
            anneal_strategy=self.anneal,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            cycle_momentum=self.cycle_momentum,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )


@dataclass(frozen=True)
class Power(Schedule):
    """lr / (1 + t/s)^c after t steps.

    Args:
        s: Number of steps after which the rate is divided by 2^c.
        c: The power.
    """

    s: int = 10_000
    c: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "s", "c")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return LambdaLR(optimizer, lambda t: (1 + t / self.s) ** -self.c)


@dataclass(frozen=True)
class Exponential(Schedule):
    """lr * factor^(t/s) after t epochs or steps.

    Args:
        factor: What the rate is multiplied by in s epochs or steps.
        s: Number of epochs or steps.
        by: Whether t and s count epochs or steps.
    """

    factor: float = 0.1
    s: float = 20.0
    by: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "s")

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """See `Schedule.interval`."""
        return self.by

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return ExponentialLR(optimizer, gamma=self.factor ** (1 / self.s))


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """lr times a factor that changes at some epochs.

    Args:
        epochs: The epochs at which it changes, ascending.
        factors: The factor before the first of them and from each of them on: one more than epochs.

    Raises:
        ValueError: If the numbers do not fit.
    """

    epochs: list[int] = field(default_factory=lambda: [5, 15])
    factors: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.1])

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.epochs) + 1 or self.epochs != sorted(set(self.epochs)):
            raise ValueError(
                "wrong pieces: expected ascending epochs and one factor more than epochs, received "
                f"epochs={self.epochs}, factors={self.factors}"
            )

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """See `Schedule.interval`."""
        return "epoch"

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return LambdaLR(optimizer, lambda epoch: self.factors[bisect_right(self.epochs, epoch)])


@dataclass(frozen=True)
class Performance(Schedule):
    """Multiply the rate by a factor when a metric has not improved for some time (torch's `ReduceLROnPlateau`).

    Args:
        metric: The metric, as it is logged; a loss is to fall, an accuracy to rise.
        factor: What the rate is multiplied by.
        patience: Number of validations without improvement that are borne.
        min_lr: The rate is never below this.
    """

    metric: Literal["val_loss", "val_accuracy", "val_top3_accuracy"] = "val_loss"
    factor: float = 0.5
    patience: int = 5
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor out of range: expected 0 < factor < 1, received {self.factor}")

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """See `Schedule.interval`."""
        return "epoch"

    @property
    def monitor(self) -> str | None:
        """See `Schedule.monitor`."""
        return self.metric

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        # An epoch has improved if it is better by 1e-4, as in Keras; torch's own default is relative.
        return ReduceLROnPlateau(
            optimizer,
            "min" if self.metric == "val_loss" else "max",
            factor=self.factor,
            patience=self.patience,
            threshold=1e-4,
            threshold_mode="abs",
            min_lr=self.min_lr,
        )


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up to the optimizer's rate, then half a cosine down (Loshchilov and Hutter 2017, without restarts).

    Args:
        warmup: Share of the steps in which the rate climbs from near 0.
        final: Last rate over the optimizer's rate.
    """

    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup out of range: expected 0 <= warmup < 1, received {self.warmup}")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`.

        Raises:
            ValueError: If the number of steps is not known.
        """
        n = _known(total_steps, "Cosine")
        rise = round(self.warmup * n)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            share = min((step - rise) / max(n - rise, 1), 1)
            return self.final + (1 - self.final) * (1 + cos(pi * share)) / 2

        return LambdaLR(optimizer, factor)


def _check_positive(schedule: Schedule, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if value is not None and not 0 < value < inf:
            raise ValueError(f"{name} out of range: expected a positive number, received {value}")


def _known(total_steps: int | None, schedule: str) -> int:
    if total_steps is None or total_steps < 1:
        raise ValueError(
            f"{schedule} needs to know how long the training is: expected --trainer.max_epochs or "
            f"--trainer.max_steps and a data loader with a length, received {total_steps or 'neither'}"
        )
    return total_steps


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
