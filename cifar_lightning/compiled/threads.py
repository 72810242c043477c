"""How many cores there are, and how many threads a training had best take."""

import math
import os
import time

import torch

#: More threads must be this much faster than one at the products to be chosen. A whole step gains less, and loses
#: more where another process takes a core: at batch 32, twice as much with 1.15 as with 1.25.
WORTH_A_THREAD = 1.25
#: Several threads are given up when a step takes this many times as long as the fastest, so many times in a row.
TOO_SLOW = 2.0
SLOW_IN_A_ROW = 3


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # which neither macOS nor Windows has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(features: int, width: int, batch_size: int) -> int:
    """The number of threads, one or torch's own, that is faster now at a (features, width) layer's products.

    At batch 32 a second thread gains little on a free core and loses much on a busy one. The environment variable
    OMP_NUM_THREADS decides where it is set.
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
    """Notices that steps have become much slower than they were: several threads wait for each other on busy cores.

    A choice before the first step can't know the next minutes: one more busy process makes two threads ten times as
    slow as one.
    """

    def __init__(self) -> None:
        self._fastest, self._slow, self._count = math.inf, 0, 0

    def has_dropped(self, seconds: float) -> bool:
        """Whether the last few measurements, of which `seconds` is the newest, are far above the fastest."""
        self._count += 1
        if self._count == 1:  # in which the step may have been compiled
            return False
        self._fastest = min(self._fastest, seconds)
        self._slow = self._slow + 1 if seconds > TOO_SLOW * self._fastest else 0
        return self._slow >= SLOW_IN_A_ROW
