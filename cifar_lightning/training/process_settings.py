"""Torch's settings for the whole process that a training changes for itself."""

from typing import Literal

import torch

MatmulPrecision = Literal["highest", "high", "medium"]


class ProcessSettings:
    """Number of threads and precision of float32 matrix products: changed for a training, restored afterwards."""

    def __init__(self) -> None:
        self._before: tuple[int, str | None] | None = None

    def change(self, threads: int, precision: MatmulPrecision | None) -> None:
        """Set both until `restore`; None leaves the precision as it is."""
        # (Torch can't tell its precision if a program has set it for one kind of device only.)
        self._before = torch.get_num_threads(), torch.get_float32_matmul_precision() if precision else None
        torch.set_num_threads(threads)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)

    def restore(self) -> None:
        """Restore what `change` found, if it was called."""
        if self._before is not None:
            threads, precision = self._before
            torch.set_num_threads(threads)
            if precision is not None:
                torch.set_float32_matmul_precision(precision)
        self._before = None
