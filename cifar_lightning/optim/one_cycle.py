"""The 1cycle policy.

L. N. Smith, "A disciplined approach to neural network hyper-parameters: Part 1", 2018, https://arxiv.org/abs/1803.09820.
The defaults are those of `OneCycleScheduler` in A. Géron's notebook on training deep networks
(https://github.com/ageron/handson-ml2), where only the rate changes, piecewise linearly.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from cifar_lightning.optim.schedule import Schedule, check_positive, require_length


@dataclass(frozen=True, repr=False)
class OneCycle(Schedule):
    """The 1cycle policy: the learning rate rises, falls, and then decays (Smith 2018). The defaults follow Géron.

    With N steps and h = (N - (N // 10 + 1)) // 2, the rate climbs from max_lr / div_factor to max_lr in h steps,
    comes back down in h more, and decays to max_lr / div_factor / final_div_factor in the rest.

    Args:
        max_lr: The peak rate; the optimizer's learning rate by default.
        anneal: Shape of each phase.
        pct_start: Fraction of the steps spent climbing, and the same again coming back; h / N by default.
        div_factor: Ratio of the peak rate to the first.
        final_div_factor: Ratio of the first rate to the last.
        cycle_momentum: Whether to move momentum (SGD), beta1 (Adam and its relatives) or both (MuonAdamW) from
            `max_momentum` to `base_momentum` and back.
        base_momentum: Momentum at the peak rate.
        max_momentum: Momentum at the first and last rates.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> from cifar_lightning import OneCycle
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = OneCycle().build(optimizer, total_steps=20)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.0325
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
            raise ValueError(f"pct_start must be in (0, 0.5], got {self.pct_start}")
        check_positive(self, "max_lr", "div_factor", "final_div_factor")

    def build(self, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
        """See `Schedule.build`.

        Raises:
            ValueError: If the number of steps is unknown.
        """
        n = require_length(total_steps, "OneCycle")
        h = (n - (n // 10 + 1)) // 2 if self.pct_start is None else round(self.pct_start * n)
        peaks = [self.max_lr or group["lr"] for group in optimizer.param_groups]
        if h == 0:  # N < 3 has no room for a peak; as in Géron's formula, only the last phase is left
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak
            start = 1 / self.div_factor
            end = start / self.final_div_factor
            return LambdaLR(optimizer, lambda step: start + (end - start) * min(step / n, 1))
        # N + 1 total steps, because torch counts the rate after the last step too: with N, a linear cycle would end at
        # a negative rate (pytorch#91765).
        return _OneCycleLR(
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


class _OneCycleLR(OneCycleLR):
    """Torch's schedule, which moves beta1 alone where parameter groups have a momentum too, as those of MuonAdamW."""

    def get_lr(self) -> list[float | Tensor]:
        """The rates of this step; momentum is set here too, as in torch."""
        rates = super().get_lr()
        for group in self.optimizer.param_groups if self.cycle_momentum else ():
            if "betas" in group and "momentum" in group:
                group["momentum"] = group["betas"][0]
        return rates
