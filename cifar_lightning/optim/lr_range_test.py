"""The learning-rate range test for any PyTorch model: sweep the rate, record the loss, suggest a rate.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, https://arxiv.org/abs/1506.01186.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.errors import refuse_more, unknown_name
from cifar_lightning.optim.lr_descent import descends, noise
from cifar_lightning.optim.lr_rules import RULES, Rule
from cifar_lightning.optim.restored import restored, set_rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["exponential", "linear"]

#: Fraction of the sweep over which the loss is averaged. fastai's weight of 0.98 averages over half of a 100-step
#: sweep, and shifts every suggestion by as much.
WINDOW = 0.05
#: The sweep ends when the smoothed loss is this many times its minimum, as in fastai.
DIVERGED = 4.0
MIN_STEPS, MAX_STEPS = 10, 1_000_000
#: Largest relative standard error of the smoothed loss. If small batches would exceed it, each loss is also measured on
#: extra batches, the same ones at every rate: up to `MAX_BATCHES` in all.
PRECISION = 0.03
MAX_BATCHES = 64
#: Number of batches from which the noise is estimated before the sweep.
PILOT_BATCHES = 16


class LRSweepError(ValueError):
    """No learning rate can be suggested from a sweep."""


@dataclass(frozen=True)
class LRSweep:
    """The learning rates of a range test and the loss at each.

    Args:
        lrs: The rates, ascending.
        losses: The raw loss at each rate.
        num_steps: Planned number of steps; a sweep that diverges has fewer.

    Example:
        >>> from cifar_lightning import LRSweep
        >>> rates = [10 ** (k / 10 - 4) for k in range(40)]
        >>> losses = [2.0 - k / 20 for k in range(30)] + [0.5 + k for k in range(10)]
        >>> sweep = LRSweep(rates, losses, num_steps=40)
        >>> 1e-4 < sweep.suggest() < 0.1
        True
    """

    lrs: list[float]
    losses: list[float]
    num_steps: int

    @property
    def smoothed(self) -> list[float]:
        """The exponential moving average of the losses, bias-corrected (Kingma and Ba 2015)."""
        smoother = _Smoother(self.num_steps)
        return [smoother.update(loss) for loss in self.losses]

    def suggest(self, rule: Rule = "valley") -> float:
        """The learning rate that `rule` suggests, one of those swept.

        Raises:
            LRSweepError: If too few losses are finite or they never descend: then no rule is meaningful.
            ValueError: If the rule is unknown.
        """
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        return RULES[rule](*self._trimmed())

    def suggestions(self) -> dict[str, float]:
        """The learning rate that each rule suggests, by rule.

        Raises:
            LRSweepError: See `suggest`.
        """
        trimmed = self._trimmed()
        return {rule: RULES[rule](*trimmed) for rule in get_args(Rule)}

    def plot(self, rule: Rule = "valley") -> "Figure":
        """Plot the losses and each rule's suggestion, highlighting `rule`. A notebook displays the returned figure."""
        from cifar_lightning.optim.rate_plots import draw_sweep

        return draw_sweep(self, rule)

    def __repr__(self) -> str:
        if not self.lrs:
            return f"LRSweep(none of {self.num_steps} steps)"
        try:
            suggestion = f"valley {self.suggest():.3g}"
        except LRSweepError:
            suggestion = "no suggestion"
        return (
            f"LRSweep({len(self.lrs)} of {self.num_steps} steps, lr {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}, "
            f"loss {self.losses[0]:.4g} to {min(self.smoothed):.4g}, {suggestion})"
        )

    def _trimmed(self) -> tuple[list[float], list[float]]:
        """Rates and smoothed losses without the first tenth and the last five, as in fastai.

        Unlike in fastai, the end is where the loss climbs above its initial value: whatever an unstable run does after
        that, such as falling steeply after a spike, recommends no rate.
        """
        finite = next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), len(self.losses))
        if finite < MIN_STEPS:
            raise LRSweepError(
                f"the sweep diverged at once: expected at least {MIN_STEPS} finite losses, got {finite}, "
                f"starting at a learning rate of {self.lrs[0] if self.lrs else math.nan:.1e}. Use a lower min_lr"
            )
        losses, smoothed, start = self.losses[:finite], self.smoothed[:finite], finite // 10
        # The first steps hardly move the weights: the spread of their losses is noise, which a window averages out.
        first = max(5, start)
        mean = statistics.fmean(losses[:first])
        spreads = statistics.stdev(losses[:first]), noise(losses)
        first_error, error = (spread / _window(self.num_steps) ** 0.5 for spread in spreads)
        high = mean + max(3 * first_error, 5 * error, 0.05 * abs(mean))
        end = next((i for i in range(start, finite) if smoothed[i] > high), finite)
        lowest = min(smoothed[start:end], default=math.inf)
        # (A fall within rounding errors does not count.)
        if not (lowest < mean - 1e-4 * abs(mean) and descends(losses[:end], first)):
            raise LRSweepError(
                f"the loss never descended: expected it to fall from {mean:.4g} by more than chance explains, got "
                f"{lowest:.4g} as its lowest smoothed value. Sweep another range, use more steps or larger batches, or "
                "look for a bug"
            )
        stop = max(end - 5, start + 3)
        return self.lrs[start:stop], smoothed[start:stop]


def make_rates(min_lr: float, max_lr: float, num_steps: int, mode: Mode = "exponential") -> list[float]:
    """`num_steps` learning rates from `min_lr` to `max_lr`, both included.

    Raises:
        ValueError: If the range is empty or not positive, `num_steps` is less than 10 or more than a million, or the
            mode is unknown.
    """
    if not 0 < min_lr < max_lr < math.inf:
        raise ValueError(f"expected learning rates 0 < min_lr < max_lr, got min_lr={min_lr}, max_lr={max_lr}")
    if num_steps < MIN_STEPS:
        raise ValueError(f"the sweep is too short: num_steps must be at least {MIN_STEPS}, got {num_steps}")
    refuse_more(MAX_STEPS, num_steps, "steps of a sweep (num_steps)")
    shares = [i / (num_steps - 1) for i in range(num_steps)]
    match mode:
        case "exponential":
            return [min_lr * (max_lr / min_lr) ** share for share in shares]
        case "linear":
            return [min_lr + (max_lr - min_lr) * share for share in shares]
    raise unknown_name("mode", mode, get_args(Mode))


def _window(num_steps: int) -> float:
    """Number of losses to average over."""
    return max(1.0, WINDOW * num_steps)


class _Smoother:
    """A bias-corrected exponential moving average."""

    def __init__(self, num_steps: int) -> None:
        self.beta = 1 - 1 / _window(num_steps)
        self.average, self.count = 0.0, 0

    def update(self, loss: float) -> float:
        """Add a loss and return the average so far."""
        self.count += 1
        self.average = self.beta * self.average + (1 - self.beta) * loss
        return self.average / (1 - self.beta**self.count)


def run_sweep(step: Callable[[float], float], lrs: Sequence[float]) -> LRSweep:
    """Call `step`, which takes one optimizer step at a given rate and returns the loss, until the loss diverges."""
    sweep, smoother, lowest = LRSweep([], [], len(lrs)), _Smoother(len(lrs)), math.inf
    for lr in lrs:
        loss = step(lr)
        sweep.lrs.append(lr)
        sweep.losses.append(loss)
        smoothed = smoother.update(loss)
        lowest = min(lowest, smoothed)
        limit = DIVERGED * lowest
        if not math.isfinite(loss) or (smoothed > limit > 0 and smoothed > limit + 7 * noise(sweep.losses)):
            break
    return sweep


def count_batches(losses: Sequence[float], num_steps: int) -> int:
    """Number of batches on which to measure each loss of a sweep, given the losses of some batches at fixed weights."""
    if not all(map(math.isfinite, losses)):
        return 1
    mean, spread = abs(statistics.fmean(losses)), statistics.stdev(losses)
    needed = (spread / max(PRECISION * mean, 1e-12)) ** 2 / _window(num_steps)
    return max(1, math.ceil(min(needed, MAX_BATCHES)))


def group_factors(optimizer: Optimizer, base: float | None = None) -> list[float]:
    """Each parameter group's factor on the swept rate, so that the groups keep their ratios.

    Args:
        optimizer: The optimizer; a schedule may have changed its current rates.
        base: The rate that corresponds to the swept one; if no group has it, the largest is used.
    """
    rates = [float(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in optimizer.param_groups]
    if base is None or not any(math.isclose(rate, base, rel_tol=1e-6) for rate in rates):
        base = max(rates)
    return [rate / base if base else 1.0 for rate in rates]


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of `loader`, pass after pass. Those of an iterator, which has only one pass, are kept.

    Raises:
        ValueError: If a pass has no batches.
    """
    kept: list[Any] = []
    batches = iter(loader)
    once = batches is loader
    while True:
        empty = True
        for batch in batches:
            empty = False
            if once:
                kept.append(batch)
            yield batch
        if empty:
            raise ValueError("the sweep needs a loader with at least one batch, got an empty one")
        once, batches = False, iter(kept or loader)


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
    """Sweep the learning rate of any PyTorch model in training mode, then restore the model and the optimizer.

    Torch's random generator is restored too, but not a generator of the loader's own. Where the loss varies a lot
    between batches, as with small ones, each loss is averaged over up to 64 batches: the step's own and some fixed
    ones, which are not trained on.

    Args:
        model: The model.
        optimizer: Its optimizer. The largest rate is swept; parameter groups keep the ratios of their rates.
        loss_fn: Maps the model's output and the targets to a loss.
        loader: Pairs of inputs and targets; it is iterated over as often as needed.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of optimizer steps, at least 10.
        mode: Whether the rate grows by a constant factor or by a constant difference.

    Returns:
        The sweep; its `suggest()` picks a learning rate.

    Raises:
        ValueError: If the range is wrong or the loader is empty.

    Example:
        >>> import torch
        >>> from cifar_lightning import find_lr
        >>> model = torch.nn.Linear(4, 1)
        >>> batches = [(x, x.sum(1, keepdim=True)) for x in torch.randn(20, 32, 4)]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> sweep = find_lr(model, optimizer, torch.nn.functional.mse_loss, batches, num_steps=50)
        >>> 1e-4 < sweep.suggest() < 1
        True
    """
    lrs = make_rates(min_lr, max_lr, num_steps, mode)
    device = next(model.parameters()).device
    factors = group_factors(optimizer)
    batches = endless(loader)

    def measure(batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return loss_fn(model(inputs.to(device)), targets.to(device))

    def step(lr: float) -> float:
        batch, losses = next(batches), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = measure(batch)
            loss.backward()
            losses.append(loss.item())
            return loss

        with torch.no_grad():
            others = [measure(other).item() for other in probe]
        set_rates(optimizer, [lr * factor for factor in factors])
        optimizer.step(closure)  # type: ignore[arg-type]  # LBFGS calls it again, at other weights
        return statistics.fmean([losses[0], *others])

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), restored(model, optimizer):
        model.train()
        pilot = list(islice(batches, PILOT_BATCHES))
        with torch.no_grad(), torch.random.fork_rng(devices):
            count = count_batches([measure(batch).item() for batch in pilot], num_steps)
        probe = list(islice(batches, count - 1))  # not trained on while there are other batches
        batches = chain(pilot, batches)
        return run_sweep(step, lrs)
