"""Which rate the losses of a learning-rate range test suggest, rule by rule.

A rule takes ascending rates and the smoothed loss at each, and suggests a rate among those swept. The rules have
fastai's names and formulas (J. Howard et al., fastai.callback.schedule); `climb` is Géron's.
"""

import math
from collections.abc import Callable
from typing import Literal

Rule = Literal["valley", "steep", "minimum", "slide", "climb"]


def valley(lrs: list[float], losses: list[float]) -> float:
    """Half-way through the longest descent: fastai's `valley`."""
    # length[i] is that of the longest falling subsequence that ends at i.
    n = len(losses)
    length = [1] * n
    end = 0
    for i in range(1, n):
        length[i] = 1 + max((length[j] for j in range(i) if losses[i] < losses[j]), default=0)
        if length[i] > length[end]:
            end = i
    start = end - length[end]  # fastai's: one too low, so -1 for a descent from the first loss on
    third = (end - start) / 3
    return lrs[max(start + int(third) + int(third / 2), 0)]


def steep(lrs: list[float], losses: list[float]) -> float:
    """Where the loss falls fastest against the logarithm of the rate: fastai's `steep`."""
    slopes = [(b - a) / math.log(v / u) for a, b, u, v in zip(losses, losses[1:], lrs, lrs[1:], strict=False)]
    return lrs[slopes.index(min(slopes))]


def minimum(lrs: list[float], losses: list[float]) -> float:
    """A tenth of the rate with the lowest loss, but at least the first: fastai's `minimum`."""
    return max(lrs[losses.index(min(losses))] / 10, lrs[0])


def slide(lrs: list[float], losses: list[float], distance: int = 15, threshold: float = 0.005) -> float:
    """Where, coming from the right, the slope stops to change over `distance` rates: fastai's `slide`."""
    n = len(losses)
    slopes = [  # of a step, as numpy.gradient gives them
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

    It starts to climb where, after its minimum, it has regained the part `rise` of what it had descended.
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
