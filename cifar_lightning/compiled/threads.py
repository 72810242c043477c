"""Counts cores and chooses the number of threads for training."""

import math
import os
import time

import torch

#: Several threads are chosen only if they compute the matrix products this many times as fast as one. A whole step
#: gains less, and loses more if another process takes a core: at batch 32, twice as much with 1.15 as with 1.25.
WORTH_A_THREAD = 1.25
#: Several threads are given up when a step takes this many times as long as the fastest, so many times in a row.
TOO_SLOW = 2.0
SLOW_IN_A_ROW = 3


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # missing on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(features: int, width: int, batch_size: int) -> int:
    """Choose the number of threads, one or torch's default, by timing the products of a (features, width) layer.

    At batch 32, a second thread gains little on a free core and loses much on a busy one. The environment variable
    OMP_NUM_THREADS takes precedence.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    x, gradient, weight = torch.ones(batch_size, features), torch.ones(batch_size, width), torch.ones(width, features)
    seconds = {}
    for threads in (most, 1):
        torch.set_num_threads(threads)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            x @ weight.T, gradient.T @ x
            for _ in range(20):
                gradient.T @ gradient
            times.append(time.perf_counter() - start)
        seconds[threads] = sorted(times)[len(times) // 2]
    torch.set_num_threads(most)
    return most if seconds[1] > WORTH_A_THREAD * seconds[most] else 1


class Pace:
    """Notices when steps become much slower because threads wait for each other on busy cores.

    The choice of threads before the first step can't foresee this: one more busy process makes two threads ten times
    as slow as one.
    """

    def __init__(self) -> None:
        self._fastest, self._slow, self._count = math.inf, 0, 0

    def has_dropped(self, seconds: float) -> bool:
        """Add a measurement; return whether the last few are far above the fastest."""
        self._count += 1
        if self._count == 1:  # it may include compilation
            return False
        self._fastest = min(self._fastest, seconds)
        self._slow = self._slow + 1 if seconds > TOO_SLOW * self._fastest else 0
        return self._slow >= SLOW_IN_A_ROW
