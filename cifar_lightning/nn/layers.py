"""Activations, normalizations and dropouts, looked up by name."""

import inspect
import sys
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


def make_activation(name: ActivationName | str, parameters: Mapping[str, Any] | None = None) -> nn.Module:
    """Make the activation called `name`.

    Args:
        name: One of `ACTIVATIONS`, or the import path of a class in an imported module, such as "my.module.Swish2".
        parameters: Keyword arguments of its class, such as LeakyReLU's negative_slope.

    Raises:
        ValueError: If the name or a parameter is unknown.
    """
    cls = ACTIVATIONS.get(name) or _own_activation(name)
    known = set(inspect.signature(cls).parameters) - {"inplace", "device", "dtype"}
    for parameter in parameters or {}:
        if parameter not in known:
            raise unknown_name(f"parameter of {name}", parameter, sorted(known) or ["none (it takes no parameters)"])
    return cls(**(parameters or {}))


def _own_activation(path: str) -> type[nn.Module]:
    """The class at an import path. No module is imported here: loading a checkpoint must not run code."""
    module, _, name = str(path).rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise unknown_name("activation", path, [*ACTIVATIONS, "or the import path of a class in an imported module"])
    return cls


def make_normalization(name: NormalizationName, features: int, momentum: float, eps: float) -> nn.Module:
    """Make a normalization layer for inputs (B, features), or an identity for "none".

    Args:
        name: "none", "batch" (Ioffe and Szegedy 2015) or "layer" (Ba et al. 2016).
        features: Number of features.
        momentum: Weight of the current batch in the running statistics of batch normalization: 1 minus Keras's
            momentum.
        eps: Added to the variance.

    Raises:
        ValueError: If the name is unknown.
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
    """Make a dropout layer with probability `p`, or an identity for "none".

    Raises:
        ValueError: If the name is unknown or `p` is out of range.
    """
    if name not in DROPOUTS:
        raise unknown_name("dropout", name, DROPOUTS)
    check_probability(p)
    return nn.Identity() if name == "none" else DROPOUTS[name](p=p)
