"""The learning-rate range test: a sweep of rates, the loss at each, and what it suggests. For any PyTorch model.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, https://arxiv.org/abs/1506.01186.
"""

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.errors import unknown_name
from cifar_lightning.optim.lr_rules import RULES, Rule

Mode = Literal["exponential", "linear"]

#: Share of the sweep over which the loss is averaged. fastai's weight of 0.98 is half of a sweep of 100 steps, and
#: moves every suggestion by as much.
WINDOW = 0.05
#: The sweep ends when the smoothed loss is this many times its minimum, fastai's.
DIVERGED = 4.0
MIN_STEPS = 10


class LRSweepError(ValueError):
    """A sweep that suggests nothing."""


@dataclass(frozen=True)
class LRSweep:
    """The rates that were tried and the loss at each.

    Args:
        lrs: The rates, ascending.
        losses: The raw loss of the step at each rate.
        num_steps: Number of steps that were to be made; a sweep that diverges has fewer.
    """

    lrs: list[float]
    losses: list[float]
    num_steps: int

    @property
    def smoothed(self) -> list[float]:
        """The exponential moving average of the losses, corrected for its start from 0 (Kingma and Ba 2015)."""
        smoother = _Smoother(self.num_steps)
        return [smoother.update(loss) for loss in self.losses]

    def suggest(self, rule: Rule = "valley") -> float:
        """The rate that `rule` suggests.

        Raises:
            LRSweepError: If the losses are not finite, or never descend: then no rule means anything.
            ValueError: For an unknown rule.
        """
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        lrs, losses = self._trimmed()
        return RULES[rule](lrs, losses)

    def suggestions(self) -> dict[str, float]:
        """What every rule suggests.

        Raises:
            LRSweepError: See `suggest`.
        """
        return {rule: self.suggest(rule) for rule in get_args(Rule)}

    def _trimmed(self) -> tuple[list[float], list[float]]:
        """Rates and smoothed losses without the first tenth and the last five, as in fastai.

        Unlike there the end is where the loss climbs above where it began: what an unstable run does beyond that, a
        steep fall after a spike above all, recommends no rate.
        """
        finite = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), len(self.losses))
        if finite < MIN_STEPS:
            raise LRSweepError(
                f"the sweep diverged at once: expected at least {MIN_STEPS} finite losses, received {finite}, "
                f"at rates from {self.lrs[0] if self.lrs else math.nan:.1e} on. Begin with a lower min_lr"
            )
        smoothed, start = self.smoothed[:finite], finite // 10
        # The first losses hardly move the weights: their spread is the noise, which averages out over a window, and
        # whose extremes over a sweep lie some two standard errors from its mean.
        first = self.losses[: max(5, start)]
        noise = 3 * statistics.stdev(first) / max(1.0, WINDOW * self.num_steps) ** 0.5
        mean = statistics.fmean(first)
        low, high = mean - max(noise, 1e-4 * abs(mean)), mean + max(noise, 0.05 * abs(mean))
        end = next((i for i in range(start, finite) if smoothed[i] > high), finite)
        lowest = min(smoothed[start:end], default=math.inf)
        if lowest >= low:
            raise LRSweepError(
                f"the loss never descended: expected it to fall below {low:.4g}, further than by chance; received "
                f"{lowest:.4g} as its lowest. Sweep other rates, take more steps, or look for an error"
            )
        stop = max(end - 5, start + 3)
        return self.lrs[start:stop], smoothed[start:stop]


def make_rates(min_lr: float, max_lr: float, num_steps: int, mode: Mode = "exponential") -> list[float]:
    """`num_steps` rates from `min_lr` to `max_lr`, both included.

    Raises:
        ValueError: If the range is empty or not positive, for fewer than 10 steps, or for an unknown mode.
    """
    if not 0 < min_lr < max_lr < math.inf:
        raise ValueError(
            f"wrong range of rates: expected 0 < min_lr < max_lr, received min_lr={min_lr}, max_lr={max_lr}"
        )
    if num_steps < MIN_STEPS:
        raise ValueError(f"too short a sweep: expected num_steps >= {MIN_STEPS}, received {num_steps}")
    shares = [i / (num_steps - 1) for i in range(num_steps)]
    match mode:
        case "exponential":
            return [min_lr * (max_lr / min_lr) ** share for share in shares]
        case "linear":
            return [min_lr + (max_lr - min_lr) * share for share in shares]
    raise unknown_name("mode", mode, get_args(Mode))


class _Smoother:
    """An exponential moving average, corrected for its start from 0."""

    def __init__(self, num_steps: int) -> None:
        self.beta = 1 - 1 / max(1.0, WINDOW * num_steps)
        self.average, self.count = 0.0, 0

    def update(self, loss: float) -> float:
        """Add a loss, and return the average so far."""
        self.count += 1
        self.average = self.beta * self.average + (1 - self.beta) * loss
        return self.average / (1 - self.beta**self.count)


def run_sweep(step: Callable[[float], float], lrs: Sequence[float]) -> LRSweep:
    """Call `step`, which makes one optimizer step at a rate and returns its loss, until the loss diverges."""
    sweep, smoother, lowest = LRSweep([], [], len(lrs)), _Smoother(len(lrs)), math.inf
    for lr in lrs:
        loss = step(lr)
        sweep.lrs.append(lr)
        sweep.losses.append(loss)
        smoothed = smoother.update(loss)
        lowest = min(lowest, smoothed)
        if not math.isfinite(loss) or smoothed > DIVERGED * lowest > 0:
            break
    return sweep


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of `loader`, pass after pass.

    Raises:
        ValueError: If a pass has none.
    """
    while True:
        batch = loader  # a sentinel: no batch is the loader itself
        for batch in loader:
            yield batch
        if batch is loader:
            raise ValueError("nothing to sweep over: expected a loader with at least one batch, received an empty one")


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    min_lr: float = 1e-5,
    max_lr: float = 10.0,
    num_steps: int = 300,
    mode: Mode = "exponential",
) -> LRSweep:
    """Sweep the learning rate of a plain PyTorch model, in training mode, and leave model and optimizer as they were.

    Torch's generator is restored too; a loader that draws from one of its own moves on.

    Args:
        model: The model, which maps inputs to what `loss_fn` takes first.
        optimizer: Its optimizer.
        loss_fn: Maps the model's output and the targets to a loss.
        loader: Pairs of inputs and targets, gone through as often as it takes.
        min_lr: The first rate.
        max_lr: The last rate.
        num_steps: Number of optimizer steps, at least 10.
        mode: Whether the rates grow by a factor or by a difference.

    Returns:
        The sweep; its `suggest()` gives a rate.

    Raises:
        ValueError: For a wrong range, or an empty loader.
    """
    lrs = make_rates(min_lr, max_lr, num_steps, mode)
    device = next(model.parameters()).device
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    batches = endless(loader)

    def step(lr: float) -> float:
        inputs, targets = next(batches)
        set_rate(optimizer, lr)
        optimizer.zero_grad()
        loss = loss_fn(model(inputs.to(device)), targets.to(device))
        loss.backward()
        optimizer.step()
        return loss.item()

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.train()
            return run_sweep(step, lrs)
        finally:
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
            optimizer.zero_grad()
            for module, training in modes:
                module.training = training
