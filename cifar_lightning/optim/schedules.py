"""Learning-rate schedules. Each is a few options, from which it builds a torch scheduler."""

from bisect import bisect_right
from dataclasses import dataclass, field
from math import cos, pi
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LambdaLR, LRScheduler, ReduceLROnPlateau

from cifar_lightning.optim.one_cycle import OneCycle
from cifar_lightning.optim.schedule import Schedule, check_positive, require_length

#: All schedules: the namespace of their short names.
__all__ = ["Constant", "Cosine", "Exponential", "OneCycle", "Performance", "PiecewiseConstant", "Power"]


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """A constant learning rate, the optimizer's.

    Example:
        >>> import torch
        >>> from cifar_lightning import Constant
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = Constant().build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.1
    """

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True, repr=False)
class Power(Schedule):
    """Power scheduling: the learning rate is lr / (1 + t/s)^c after t steps.

    Args:
        s: Number of steps after which the rate is divided by 2^c.
        c: The power.

    Example:
        >>> import torch
        >>> from cifar_lightning import Power
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = Power(s=2).build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.05
    """

    s: int = 10_000
    c: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "s", "c")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return LambdaLR(optimizer, lambda t: (1 + t / self.s) ** -self.c)


@dataclass(frozen=True, repr=False)
class Exponential(Schedule):
    """Exponential scheduling: the learning rate is lr * factor^(t/s) after t epochs or steps.

    Args:
        factor: The rate is multiplied by this every s epochs or steps.
        s: Number of epochs or steps.
        by: Whether t and s count epochs or steps.

    Example:
        >>> import torch
        >>> from cifar_lightning import Exponential
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = Exponential(s=2, by="step").build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.01
    """

    factor: float = 0.1
    s: float = 20.0
    by: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        check_positive(self, "factor", "s")

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """See `Schedule.interval`."""
        return self.by

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return ExponentialLR(optimizer, gamma=self.factor ** (1 / self.s))


@dataclass(frozen=True, repr=False)
class PiecewiseConstant(Schedule):
    """Piecewise constant scheduling: the learning rate is lr times a factor that changes at given epochs.

    Args:
        epochs: The epochs at which the factor changes, ascending.
        factors: The factor before the first of these epochs, and from each of them on: one more than `epochs`.

    Raises:
        ValueError: If `epochs` do not ascend, or the numbers of epochs and factors do not match.

    Example:
        >>> import torch
        >>> from cifar_lightning import PiecewiseConstant
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = PiecewiseConstant(epochs=[1], factors=[1.0, 0.1]).build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.01
    """

    epochs: list[int] = field(default_factory=lambda: [5, 15])
    factors: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.1])

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.epochs) + 1 or self.epochs != sorted(set(self.epochs)):
            raise ValueError(
                "PiecewiseConstant needs ascending epochs and one factor more than epochs, got "
                f"epochs={self.epochs}, factors={self.factors}"
            )

    @property
    def interval(self) -> Literal["step", "epoch"]:
        """See `Schedule.interval`."""
        return "epoch"

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`."""
        return LambdaLR(optimizer, lambda epoch: self.factors[bisect_right(self.epochs, epoch)])


@dataclass(frozen=True, repr=False)
class Performance(Schedule):
    """Performance scheduling: reduce the learning rate when a metric stops improving (torch's `ReduceLROnPlateau`).

    Args:
        metric: Name of the logged metric. A loss improves by falling, an accuracy by rising.
        factor: The rate is multiplied by this.
        patience: Number of validations without improvement to wait for.
        min_lr: Lower bound of the rate.

    Example:
        >>> import torch
        >>> from cifar_lightning import Performance
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = Performance(factor=0.5, patience=0).build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step(1.0)
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.05
    """

    metric: Literal["val_loss", "val_accuracy", "val_top3_accuracy"] = "val_loss"
    factor: float = 0.5
    patience: int = 5
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must be in (0, 1), got {self.factor}")

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
        # Only gains of at least 1e-4 count, as in Keras; torch's default threshold is relative.
        return ReduceLROnPlateau(
            optimizer,
            "min" if self.metric == "val_loss" else "max",
            factor=self.factor,
            patience=self.patience,
            threshold=1e-4,
            threshold_mode="abs",
            min_lr=self.min_lr,
        )


@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """Linear warm-up, then cosine decay (Loshchilov and Hutter 2017, without restarts).

    Args:
        warmup: Fraction of the steps in which the rate climbs from near 0 to the optimizer's learning rate.
        final: Ratio of the last rate to the optimizer's learning rate.

    Example:
        >>> import torch
        >>> from cifar_lightning import Cosine
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = Cosine(warmup=0.25).build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.05
    """

    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`.

        Raises:
            ValueError: If the number of steps is unknown.
        """
        n = require_length(total_steps, "Cosine")
        rise = round(self.warmup * n)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            share = min((step - rise) / max(n - rise, 1), 1)
            return self.final + (1 - self.final) * (1 + cos(pi * share)) / 2

        return LambdaLR(optimizer, factor)
