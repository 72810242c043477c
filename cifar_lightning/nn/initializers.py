"""Weight initialization: He, Glorot and LeCun as one variance scaling, and orthogonal."""

from math import prod, sqrt
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from cifar_lightning.errors import unknown_name

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "untruncated_normal", "uniform"]
#: As in Keras, `normal` means truncated at two standard deviations; `untruncated_normal` is torch's.
InitName = Literal[
    "he_normal",
    "he_untruncated_normal",
    "he_uniform",
    "glorot_normal",
    "glorot_untruncated_normal",
    "glorot_uniform",
    "lecun_normal",
    "lecun_untruncated_normal",
    "lecun_uniform",
    "orthogonal",
]

#: Variance times fan, and which fan, of each family.
FAMILIES: dict[str, tuple[float, Mode]] = {
    "he": (2.0, "fan_in"),  # He et al. 2015, equation 10
    "glorot": (1.0, "fan_avg"),  # Glorot and Bengio 2010, equation 12
    "lecun": (1.0, "fan_in"),  # LeCun et al. 1998, equation 16
}

#: Standard deviation of a standard normal truncated to [-2, 2].
TRUNCATED_STD = 0.8796256610342398


@torch.no_grad()
def variance_scaling_(
    weight: Tensor,
    scale: float = 1.0,
    mode: Mode = "fan_in",
    distribution: Distribution = "truncated_normal",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill `weight` with mean 0 and variance scale / fan.

    Args:
        weight: (outputs, inputs, ...), as torch's linear layers and convolutions hold it. Each further dimension, a
            kernel's, multiplies both fans. Nothing happens to a weight without elements.
        scale: Variance times fan; positive.
        mode: The fan that divides: inputs, outputs, or their mean.
        distribution: A normal truncated at two standard deviations, a plain one, or a uniform one. All three
            have the stated variance.
        generator: Source of randomness; torch's global one by default.

    Returns:
        `weight`.

    Raises:
        ValueError: If `weight` has fewer than two dimensions or `scale` is not positive, or for an unknown mode or
            distribution.

    Example:
        >>> import torch
        >>> from cifar_lightning import variance_scaling_
        >>> weight = variance_scaling_(torch.empty(400, 100), scale=3.0, distribution="uniform")
        >>> round(weight.var().item() * 100)
        3
    """
    if weight.ndim < 2:
        raise ValueError(f"wrong weight shape: expected (outputs, inputs, ...), got {tuple(weight.shape)}")
    if not scale > 0:
        raise ValueError(f"scale out of range: expected scale > 0, got {scale}")
    fan_out, fan_in = (size * prod(weight.shape[2:]) for size in weight.shape[:2])
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise unknown_name("mode", mode, fans)
    if distribution not in get_args(Distribution):
        raise unknown_name("distribution", distribution, get_args(Distribution))
    if weight.numel() == 0:
        return weight
    std = sqrt(scale / fans[mode])
    match distribution:
        case "truncated_normal":
            std /= TRUNCATED_STD
            return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator)
        case "untruncated_normal":
            return weight.normal_(0.0, std, generator=generator)
        case "uniform":
            limit = sqrt(3.0) * std
            return weight.uniform_(-limit, limit, generator=generator)


def initialize_(weight: Tensor, init: InitName, generator: torch.Generator | None = None) -> Tensor:
    """Fill `weight`, (outputs, inputs, ...), by the initializer called `init`, and return it.

    Raises:
        ValueError: For an unknown name.

    Example:
        >>> import torch
        >>> from cifar_lightning import initialize_
        >>> weight = initialize_(torch.empty(400, 100), "he_normal")
        >>> round(weight.var().item() * 100)
        2
    """
    if init not in get_args(InitName):
        raise unknown_name("initializer", init, get_args(InitName))
    if init == "orthogonal":  # Saxe et al. 2014
        return nn.init.orthogonal_(weight, generator=generator) if weight.numel() else weight
    family, _, distribution = init.partition("_")
    if distribution == "normal":
        distribution = "truncated_normal"
    scale, mode = FAMILIES[family]
    return variance_scaling_(weight, scale, mode, cast(Distribution, distribution), generator)
