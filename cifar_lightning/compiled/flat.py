"""Turns several tensors into views of one flat tensor, so that one kernel updates them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The positions of tensors within a flat one.

    Args:
        shapes: The tensors' shapes.
    """

    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Layout":
        """The layout of these tensors."""
        return cls(tuple(tuple(tensor.shape) for tensor in tensors))

    @property
    def order(self) -> list[int]:
        """The tensors' indices in storage order.

        Matrices come first: most take a multiple of 64 bytes, the size of a vector register, so the next is aligned.
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
    """Turn the tensors into views of a new flat tensor, and return it. They stay the same objects.

    Raises:
        ValueError: If they differ in dtype or device, or share memory.
    """
    if split := find_split(tensors):
        raise ValueError(f"cannot flatten tensors: expected one dtype and device, and no shared memory; got {split}")
    flat = layout.join([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, layout.views(flat), strict=True):
        tensor.data = view
    return flat


def separate_(tensors: Sequence[Tensor]) -> None:
    """Give each tensor its own memory again."""
    for tensor in tensors:
        tensor.data = tensor.data.clone()
