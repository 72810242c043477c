"""Decides whether the losses of a learning-rate range test descend or merely fluctuate."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

#: Widths of the windows in which losses are compared with earlier ones, as fractions of the sweep.
SHARES = (0.05, 0.1, 0.2, 0.4)
#: Standard errors by which the mean loss in a window has to lie below the first losses.
STANDARD_ERRORS = 4.5
#: A sudden fall is this many times the noise, and this many times the range of the losses before it.
TIMES_NOISE, TIMES_RANGE = 6.0, 3.0


def noise(losses: Sequence[float]) -> float:
    """Standard deviation of losses about a smooth curve; infinite for fewer than three losses.

    It is estimated from the median of the second differences, so neither a slope nor a few outliers count as noise.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    # The median of |N(0, 1)| is 0.6745, and a second difference has 1 + 4 + 1 times the variance.
    return statistics.median_low(bends) / (0.6745 * 6**0.5) if bends else math.inf


def descends(losses: Sequence[float], first: int) -> bool:
    """Whether losses, which may be skewed and noisy, fall by more than chance explains.

    Either they fall suddenly and far, or some window lies lower than the losses before it, both by rank and by mean.
    The rank test assumes no distribution, but equal noise at every rate. The test of the mean allows for noise that
    grows with the rate: where there is nothing to learn, losses fluctuate more, up and down, as the weights move away
    from their initial values.

    Args:
        losses: At least ten losses.
        first: Number of losses at the beginning that differ by little more than noise.
    """
    return falls_at_once(losses, first) or (falls_in_rank(losses) and falls_in_mean(losses, first))


def falls_at_once(losses: Sequence[float], first: int) -> bool:
    """Whether two consecutive losses lie far below all earlier ones; a single one would be an outlier."""
    spread = max(statistics.stdev(losses[:first]), noise(losses))
    lowest, highest = list(accumulate(losses, min)), list(accumulate(losses, max))
    start = statistics.fmean(losses[:first])
    return any(
        max(losses[i : i + 2]) < start - max(TIMES_NOISE * spread, TIMES_RANGE * (highest[i - 1] - lowest[i - 1]))
        for i in range(first, len(losses) - 1)
    )


def falls_in_rank(losses: Sequence[float]) -> bool:
    """Whether the mean rank in a window is lower than that of all losses before it.

    The test statistic is the largest contrast of Mann and Whitney (1947). Noise that does not depend on the rate passes
    in about one sweep in a hundred.
    """
    n, ordered = len(losses), sorted(losses)
    ranks = [(bisect_left(ordered, loss) + bisect_right(ordered, loss)) / 2 for loss in losses]
    sums = list(accumulate(ranks, initial=0.0))
    contrasts = [
        (sums[i] / i - (sums[i + width] - sums[i]) / width) / (1 / i + 1 / width) ** 0.5 for i, width in _windows(n)
    ]
    # The 99 % quantile of the largest contrast over random orders, in standard deviations: simulated for 10 to 600
    # losses, where it is 2.54, 3.08, 3.61, 3.85 and 3.92 for 10, 30, 100, 300 and 600.
    quantile = min(3.95, 2.55 + 0.46 * math.log(n / 10)) if n else 0.0
    return max(contrasts, default=0.0) > quantile * statistics.pstdev(ranks or [0.0])


def falls_in_mean(losses: Sequence[float], first: int) -> bool:
    """Whether the mean of a window lies several standard errors below the first losses.

    The standard error uses the largest of three deviations: of the window, of the first losses, and of the noise around
    the window.
    """
    start, spread = statistics.fmean(losses[:first]), statistics.stdev(losses[:first])
    for i, width in _windows(len(losses)):
        window = losses[i : i + width]
        fall = start - statistics.fmean(window)
        if fall <= 0:
            continue
        around = noise(losses[max(0, i - width) : i + 2 * width])
        if fall > STANDARD_ERRORS * max(statistics.stdev(window), spread, around) / width**0.5:
            return True
    return False


def _windows(n: int) -> Iterator[tuple[int, int]]:
    """Start and width of each window of n losses."""
    for width in sorted({max(3, round(share * n)) for share in SHARES}):
        for i in range(max(5, n // 10), n - width + 1):
            yield i, width
