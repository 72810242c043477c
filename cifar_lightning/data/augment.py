"""Data augmentation: training images mirrored and shifted by a few pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_lightning.data.batches import BatchOrder, epoch_generator, to_device


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image, drawn anew each epoch.

    Args:
        flip: Whether to mirror it left to right with a probability of 1/2.
        shift: Largest horizontal and vertical shift in pixels; all whole numbers up to it are equally likely. The edge
            that becomes free shows the image's reflection.

    Raises:
        ValueError: For a negative shift.
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0 pixels, got {self.shift}")

    def __bool__(self) -> bool:
        return self.flip or self.shift > 0


class Variants:
    """The augmented variants of images in an epoch, determined by seed, epoch and image alone.

    An image's variant therefore does not depend on the batch size or the number of devices, nor on resuming.

    Making a variant costs little more than a copy. Each image is stored with reflections to its left and right, and
    mirrored too if needed, so each row of a variant is `width` consecutive bytes (see `take_rows`).

    Variants are made where the indices of the images are: the stored pixels follow them to another device. The random
    numbers are drawn on the CPU, so variants are the same on every device.

    Args:
        images: (N, C, H, W), the original images.
        augmentation: The random changes.
        order: Provides the epoch and the seed or seeds.

    Raises:
        ValueError: If the shift is not smaller than an image.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation, order: BatchOrder) -> None:
        self._count, self._channels, self._height, self._width = images.shape
        if augmentation.shift >= min(images.shape[2:]):
            raise ValueError(
                f"shift must be less than an image's side of {min(images.shape[2:])} pixels, got {augmentation.shift}"
            )
        self._augmentation, self._order = augmentation, order
        shift = augmentation.shift
        columns = _reflect(torch.arange(-shift, self._width + shift), self._width)
        sides = [columns, columns.flip(0)] if augmentation.flip else [columns]
        self._pixels = torch.stack([images[..., side] for side in sides])  # (mirrored or not, N, C, H, W + 2 shift)
        self._stride = self._width + 2 * shift
        self._drawn: tuple[int, list[int], torch.device] | None = None
        self._table = torch.empty(0)

    def __call__(self, chosen: Tensor) -> Tensor:
        """Map indices of images, (B,) or a row for each of the order's seeds (S, B), to variants (..., C, H, W)."""
        device = chosen.device
        if self._pixels.device != device:
            self._pixels = self._pixels.to(device)
        mirrored, top, left = self._draws(chosen)
        lines = _reflect(torch.arange(self._height, device=device) + top[..., None], self._height)  # (..., H)
        channels = torch.arange(self._channels, device=device)
        planes = (mirrored * self._count + chosen)[..., None] * self._channels + channels
        starts = (planes[..., None] * self._height + lines[..., None, :]) * self._stride + left[..., None, None]
        take = take_rows if device.type == "cpu" else take_pixels
        return take(self._pixels.flatten(), starts, self._width)

    def _draws(self, chosen: Tensor) -> tuple[Tensor, ...]:
        """For each image: whether it is mirrored, and the row and column at which it starts in the stored pixels."""
        if self._drawn != (self._order.epoch, self._order.seeds, chosen.device):
            self._drawn = self._order.epoch, list(self._order.seeds), chosen.device
            table = torch.stack([self._draw(seed) for seed in self._order.seeds])  # (S, 3, N)
            self._table = to_device(table, chosen.device)
        if len(self._table) == 1:
            return self._table[0][:, chosen].unbind()
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        return tuple(self._table[:, kind][rows, chosen] for kind in range(3))

    def _draw(self, seed: int) -> Tensor:
        generator, shift = epoch_generator(seed, self._order.epoch, "variants"), self._augmentation.shift
        mirrored = torch.randint(1 + self._augmentation.flip, (self._count,), generator=generator)
        top = torch.randint(-shift, shift + 1, (self._count,), generator=generator)
        left = torch.randint(2 * shift + 1, (self._count,), generator=generator)
        return torch.stack([mirrored, top, left])


def take_rows(pixels: Tensor, starts: Tensor, width: int) -> Tensor:
    """Copy runs of `width` values from `pixels`, (N,), that begin at `starts`, (...); return them as (..., width).

    The fastest way on a CPU: from a view in which each row begins one value after the one before, `index_select` copies
    whole rows.
    """
    view = pixels.as_strided((len(pixels) - width + 1, width), (1, 1))
    return view.index_select(0, starts.flatten()).view(*starts.shape, width)


def take_pixels(pixels: Tensor, starts: Tensor, width: int) -> Tensor:
    """The same as `take_rows`, with an index for each value, for devices where each has its own thread anyway."""
    return pixels.take(starts[..., None] + torch.arange(width, device=starts.device))


def _reflect(places: Tensor, size: int) -> Tensor:
    """Reflect places that lie up to size - 1 outside into the range 0 to size - 1."""
    places = places.abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)
