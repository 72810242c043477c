"""Several tensors as views of one, so that one kernel updates them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where tensors stand in a flat one.

    Args:
        shapes: The tensors' shapes.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> list[int]:
        """Which tensor comes first, second, and so on.

        Matrices do: most hold a multiple of 64 bytes, a vector of the processor's, so the next one is aligned.
        """
        return sorted(range(len(self.shapes)), key=lambda index: len(self.shapes[index]) < 2)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy the tensors into a flat one, (N,)."""
        return torch.cat([tensors[index].reshape(-1) for index in self.order])

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors in a flat one, (N,)."""
        sizes = [torch.Size(self.shapes[index]).numel() for index in self.order]
        parts = dict(zip(self.order, flat.split(sizes), strict=True))
        return [parts[index].view(shape) for index, shape in enumerate(self.shapes)]


def find_split(tensors: Sequence[Tensor]) -> str:
    """Why tensors can't be views of one flat tensor; "" if they can."""
    kinds = {f"{tensor.dtype} on {tensor.device}" for tensor in tensors}
    if len(kinds) != 1:
        return f"tensors of several dtypes or devices: {', '.join(sorted(kinds))}" if kinds else "no tensors"
    places = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        return "tensors that share memory"
    return ""


def flatten_(layout: Layout, tensors: Sequence[Tensor]) -> Tensor:
    """Make the tensors, which stay the same objects, views of a flat one, and return it.

    Raises:
        ValueError: If they differ in dtype or device, or share memory.
    """
    if split := find_split(tensors):
        raise ValueError(
            f"tensors that can't be one: expected one dtype and device, and memory of its own for each; got {split}"
        )
    flat = layout.join([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, layout.views(flat), strict=True):
        tensor.data = view
    return flat


def separate_(tensors: Sequence[Tensor]) -> None:
    """Give each tensor memory of its own again."""
    for tensor in tensors:
        tensor.data = tensor.data.clone()
