"""Standardization of images: y = (x - mean) / std, with the statistics as persistent buffers."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cifar_lightning.errors import unknown_name

#: raw: 0 to 255, unchanged; unit: divided by 255; channel, feature: a mean and a deviation per channel or per value.
Scaling = Literal["raw", "unit", "channel", "feature"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

#: Number of images summed at a time.
CHUNK = 256


class Statistics(NamedTuple):
    """The mean and standard deviation that standardize images, in pixel values of 0 to 255."""

    scaling: Scaling
    mean: Tensor  # (C, H, W), float32
    std: Tensor  # (C, H, W), float32, positive

    def __repr__(self) -> str:
        spans = (
            f"{name} {part.min():.3g} to {part.max():.3g}" for name, part in (("mean", self.mean), ("std", self.std))
        )
        return f"Statistics({self.scaling}: {', '.join(spans)})"


def compute_statistics(images: Tensor, scaling: Scaling, indices: Tensor | None = None) -> Statistics:
    """Compute the statistics of `images`. Use the training split only.

    A feature that never varies gets standard deviation 1, so it becomes 0 rather than NaN.

    Args:
        images: (N, C, H, W), uint8.
        scaling: What to compute.
        indices: (M,), the images to use; all by default.

    Raises:
        ValueError: If the scaling is unknown or there are no images.

    Example:
        >>> import torch
        >>> from cifar_lightning import compute_statistics
        >>> images = torch.full((4, 3, 2, 2), 255, dtype=torch.uint8)
        >>> compute_statistics(images, "channel").mean[0, 0, 0].item()
        255.0
    """
    if scaling not in SCALINGS:
        raise unknown_name("scaling", scaling, SCALINGS)
    indices = torch.arange(len(images)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError("computing statistics takes at least one training image, got none")
    shape = images.shape[1:]
    mean, std = torch.zeros(shape), torch.ones(shape)
    if scaling == "unit":
        std = std * 255
    elif scaling in ("channel", "feature"):
        # Exact: the sum of x² over a chunk stays below 2^24 (float32), the sum over all images below 2^53 (float64).
        x_sum = torch.zeros(shape, dtype=torch.float64)
        x2_sum = torch.zeros(shape, dtype=torch.float64)
        for part in indices.split(CHUNK):
            x = images.index_select(0, part).float()
            x_sum += x.sum(0)
            x2_sum += x.square_().sum(0)
        m, m2 = x_sum / len(indices), x2_sum / len(indices)
        if scaling == "channel":
            m, m2 = m.mean((1, 2), keepdim=True).expand(shape), m2.mean((1, 2), keepdim=True).expand(shape)
        variance = m2 - m.square()
        deviation = variance.clamp(min=0).sqrt()
        mean, std = m.float(), torch.where(variance > 1e-6, deviation, 1.0).float()
    return Statistics(scaling, mean.contiguous(), std.contiguous())


class Standardize(nn.Module):
    """Cast images to float32 and standardize them, with statistics that are saved with the module.

    Until `set_statistics` is called or a state is loaded, it only casts.

    Args:
        shape: Shape of an image, (C, H, W), until there are statistics; then theirs counts.

    Example:
        >>> import torch
        >>> from cifar_lightning import Standardize, compute_statistics
        >>> images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
        >>> standardize = Standardize((3, 8, 8))
        >>> standardize.set_statistics(compute_statistics(images, "feature"))
        >>> bool(standardize(images).mean().abs() < 1e-5)
        True
    """

    mean: Tensor
    std: Tensor
    # (), an index into SCALINGS; -1 for none. A tensor, since a state dict holds only tensors, and floating, since a
    # moving average of equal numbers is exact only up to rounding, and truncating it could give another scaling.
    scaling_index: Tensor

    def __init__(self, shape: tuple[int, ...] = (3, 32, 32)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("scaling_index", torch.tensor(-1.0))
        self.register_load_state_dict_pre_hook(_refuse_another_scaling)  # type: ignore[no-untyped-call]

    @property
    def scaling(self) -> Scaling | None:
        """The scaling of the statistics; None if there are none."""
        return _scaling(self.scaling_index)

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over `statistics`, unless there are some already: a trained network keeps its own.

        Raises:
            ValueError: If the existing statistics are of another scaling.
        """
        _check_scaling(self.scaling, statistics.scaling)
        if self.scaling is None:
            self.adopt_shape(statistics.mean.shape)
            self.mean.copy_(statistics.mean)
            self.std.copy_(statistics.std)
            self.scaling_index.fill_(SCALINGS.index(statistics.scaling))

    def adopt_shape(self, shape: torch.Size) -> None:
        """Change the shape of an image, unless there are statistics already."""
        if self.scaling is None and self.mean.shape != shape:
            self.mean, self.std = self.mean.new_zeros(shape), self.std.new_ones(shape)

    def extra_repr(self) -> str:
        """The scaling, for `repr`."""
        return self.scaling or "no statistics yet"

    def forward(self, images: Tensor) -> Tensor:
        """Map pixel values (B, C, H, W) of 0 to 255, uint8 or floating, to standardized values (B, C, H, W).

        Raises:
            ValueError: If the images have another shape.
        """
        if images.shape[1:] != self.mean.shape:
            raise ValueError(
                f"wrong image shape: expected (B, {', '.join(map(str, self.mean.shape))}), got {tuple(images.shape)}"
            )
        return (images.to(self.mean.dtype) - self.mean) / self.std


def _scaling(index: Tensor) -> Scaling | None:
    number = round(index.item())
    return None if number < 0 else SCALINGS[number]


def _refuse_another_scaling(module: Standardize, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state is loaded: adopt its shape, or refuse it if its scaling contradicts the present statistics."""
    if (mean := state.get(f"{prefix}mean")) is not None:
        module.adopt_shape(mean.shape)
    if (index := state.get(f"{prefix}scaling_index")) is not None:
        _check_scaling(module.scaling, _scaling(index))


def _check_scaling(ours: Scaling | None, theirs: Scaling | None) -> None:
    if None not in (ours, theirs) and ours != theirs:
        raise ValueError(
            f"contradicting scalings: expected {ours!r}, for which the statistics were computed, got {theirs!r}"
        )
