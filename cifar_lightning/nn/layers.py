"""What a hidden layer can be made of: activations, normalizations and dropouts, by name."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from cifar_lightning.errors import unknown_name
from cifar_lightning.nn.alpha_dropout import AlphaDropout, check_probability

ActivationName = Literal[
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "swish",
    "mish",
    "tanh",
    "sigmoid",
    "hard_sigmoid",
    "softplus",
]
NormalizationName = Literal["none", "batch", "layer"]
DropoutName = Literal["none", "standard", "alpha"]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,  # the exercise's name
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "softplus": nn.Softplus,
}
DROPOUTS: dict[str, type[nn.Module]] = {"none": nn.Identity, "standard": nn.Dropout, "alpha": AlphaDropout}


def make_activation(name: ActivationName, parameters: Mapping[str, Any] | None = None) -> nn.Module:
    """The activation called `name`, with `parameters` as torch's class takes them (LeakyReLU's negative_slope).

    Raises:
        ValueError: For an unknown name or parameter.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    cls = ACTIVATIONS[name]
    known = set(inspect.signature(cls).parameters) - {"inplace", "device", "dtype"}
    for parameter in parameters or {}:
        if parameter not in known:
            raise unknown_name(f"parameter of {name}", parameter, sorted(known) or ["none at all"])
    return cls(**(parameters or {}))


def make_normalization(name: NormalizationName, features: int, momentum: float, eps: float) -> nn.Module:
    """A normalization of (B, features), or the identity for "none".

    Args:
        name: "none", "batch" (Ioffe and Szegedy 2015) or "layer" (Ba et al. 2016).
        features: Number of features.
        momentum: Weight of the newest batch in batch normalization's running statistics: 1 minus Keras's momentum.
        eps: Added to the variance.

    Raises:
        ValueError: For an unknown name.
    """
    match name:
        case "none":
            return nn.Identity()
        case "batch":
            return nn.BatchNorm1d(features, eps=eps, momentum=momentum)
        case "layer":
            return nn.LayerNorm(features, eps=eps)
    raise unknown_name("normalization", name, ["none", "batch", "layer"])


def make_dropout(name: DropoutName, p: float) -> nn.Module:
    """A dropout that drops with probability `p`, or the identity for "none".

    Raises:
        ValueError: For an unknown name, or if `p` is out of range.
    """
    if name not in DROPOUTS:
        raise unknown_name("dropout", name, DROPOUTS)
    check_probability(p)
    return nn.Identity() if name == "none" else DROPOUTS[name](p=p)
