"""Rules that pick a learning rate from the losses of a range test.

A rule takes ascending rates and the smoothed loss at each, and suggests one of the rates. Names and formulas are
fastai's (J. Howard et al., fastai.callback.schedule), except for `climb`, which is Géron's.
"""

import math
from collections.abc import Callable
from typing import Literal

Rule = Literal["valley", "steep", "minimum", "slide", "climb"]


def valley(lrs: list[float], losses: list[float]) -> float:
    """Half-way through the longest descent: fastai's `valley`."""
    # length[i] is the length of the longest falling subsequence that ends at i.
    n = len(losses)
    length = [1] * n
    end = 0
    for i in range(1, n):
        length[i] = 1 + max((length[j] for j in range(i) if losses[i] < losses[j]), default=0)
        if length[i] > length[end]:
            end = i
    start = end - length[end]  # as in fastai: one too low, and so -1 if the descent begins at the first loss
    third = (end - start) / 3
    return lrs[max(start + int(third) + int(third / 2), 0)]


def steep(lrs: list[float], losses: list[float]) -> float:
    """Where the loss falls fastest with the logarithm of the rate: fastai's `steep`."""
    slopes = [(b - a) / math.log(v / u) for a, b, u, v in zip(losses, losses[1:], lrs, lrs[1:], strict=False)]
    return lrs[slopes.index(min(slopes))]


def minimum(lrs: list[float], losses: list[float]) -> float:
    """A tenth of the rate with the lowest loss, but at least the first rate: fastai's `minimum`."""
    return max(lrs[losses.index(min(losses))] / 10, lrs[0])


def slide(lrs: list[float], losses: list[float], distance: int = 15, threshold: float = 0.005) -> float:
    """Where, coming from the right, the slope stops changing over `distance` rates: fastai's `slide`."""
    n = len(losses)
    slopes = [  # per step, as in numpy.gradient
        (losses[min(i + 1, n - 1)] - losses[max(i - 1, 0)]) / (min(i + 1, n - 1) - max(i - 1, 0)) for i in range(n)
    ]
    right = n - 1
    left = max(right - distance, 0)
    found = lrs[left]
    while left >= 0 and abs(slopes[right] - slopes[left]) > threshold:
        found = lrs[left]
        right, left = right - 1, left - 1
    return found


def climb(lrs: list[float], losses: list[float], rise: float = 0.1) -> float:
    """A tenth of the rate at which the loss starts to climb, but at least the first rate: Géron's rule.

    The climb starts where the loss, after its minimum, has regained the fraction `rise` of its descent.
    """
    bottom = losses.index(min(losses))
    limit = losses[bottom] + rise * (losses[0] - losses[bottom])
    turn = next((i for i in range(bottom, len(losses)) if losses[i] > limit), len(losses) - 1)
    return max(lrs[turn] / 10, lrs[0])


RULES: dict[str, Callable[[list[float], list[float]], float]] = {
    "valley": valley,
    "steep": steep,
    "minimum": minimum,
    "slide": slide,
    "climb": climb,
}
