"""Weight initialization: variance scaling, which covers He, Glorot and LeCun, and orthogonal matrices."""

from math import prod, sqrt
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from cifar_lightning.errors import unknown_name

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "untruncated_normal", "uniform"]
#: As in Keras, `normal` is truncated at two standard deviations; `untruncated_normal` is torch's normal.
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

#: For each family: variance times fan, and which fan.
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
    """Fill `weight` with random numbers of mean 0 and variance scale / fan, and return it.

    Args:
        weight: (outputs, inputs, ...), the layout of torch's linear and convolutional layers. Kernel dimensions
            multiply both fans. An empty weight is left alone.
        scale: Variance times fan; positive.
        mode: Which fan to divide by: the number of inputs, of outputs, or their mean.
        distribution: A normal truncated at two standard deviations, an untruncated normal, or a uniform
            distribution. All three have the stated variance.
        generator: Source of randomness; torch's global generator by default.

    Raises:
        ValueError: If `weight` has fewer than two dimensions, if `scale` is not positive, or if the mode or
            distribution is unknown.

    Example:
        >>> import torch
        >>> from cifar_lightning import variance_scaling_
        >>> weight = variance_scaling_(torch.empty(400, 100), scale=3.0, distribution="uniform")
        >>> round(weight.var().item() * 100)
        3
    """
    if weight.ndim < 2:
        raise ValueError(f"weight must have the shape (outputs, inputs, ...), got {tuple(weight.shape)}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
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
    """Fill `weight`, (outputs, inputs, ...), with the initializer called `init`, and return it.

    Raises:
        ValueError: If the name is unknown.

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
