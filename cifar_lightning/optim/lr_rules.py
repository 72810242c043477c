"""What the losses of a learning-rate range test say: whether they descend at all, and which rate each rule suggests.

A rule takes ascending rates and the smoothed loss at each, and suggests a rate among those swept. The rules have
fastai's names and formulas (J. Howard et al., fastai.callback.schedule); `climb` is Géron's.
"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

Rule = Literal["valley", "steep", "minimum", "slide", "climb"]


def noise(losses: Sequence[float]) -> float:
    """Standard deviation of losses about a smooth curve; infinite for fewer than three, which show no curve.

    It is taken from the median of the second differences, so neither a slope nor a few outliers count as noise.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    # The median of |N(0, 1)| is 0.6745, and a second difference has 1 + 4 + 1 times the variance.
    return statistics.median_low(bends) / (0.6745 * 6**0.5) if bends else math.inf


def descends(losses: Sequence[float]) -> bool:
    """Whether losses that may be positive, skewed and noisy fall by more than chance explains.

    A rank test, so no distribution is assumed. The mean rank in each window is compared with that of all losses
    before it, as Mann and Whitney (1947) do, and the largest contrast decides. Noise that does not depend on the rate
    passes in about one sweep of a hundred.
    """
    n, ordered = len(losses), sorted(losses)
    ranks = [(bisect_left(ordered, loss) + bisect_right(ordered, loss)) / 2 for loss in losses]
    spread = statistics.pstdev(ranks)
    sums = list(accumulate(ranks, initial=0.0))
    contrast = 0.0
    for width in {max(3, round(share * n)) for share in (0.05, 0.1, 0.2, 0.4)}:
        for i in range(max(5, n // 10), n - width + 1):
            fall = sums[i] / i - (sums[i + width] - sums[i]) / width
            contrast = max(contrast, fall / (1 / i + 1 / width) ** 0.5)
    # The 99 % quantile of the largest contrast over random orders, in standard deviations: simulated for 10 to 600
    # losses, where it is 2.54, 3.08, 3.61, 3.85 and 3.92 for 10, 30, 100, 300 and 600.
    return contrast > min(3.95, 2.55 + 0.46 * math.log(n / 10)) * spread if n else False


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
