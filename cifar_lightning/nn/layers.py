"""What a hidden layer can be made of: activations, normalizations and dropouts, by name."""

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
    """The activation called `name`, with `parameters` as its class takes them (LeakyReLU's negative_slope).

    Args:
        name: One of `ACTIVATIONS`, or the import path of a class of an imported module, such as "my.module.Swish2".
        parameters: What its class takes.

    Raises:
        ValueError: For an unknown name or parameter.
    """
    cls = ACTIVATIONS.get(name) or _own_activation(name)
    known = set(inspect.signature(cls).parameters) - {"inplace", "device", "dtype"}
    for parameter in parameters or {}:
        if parameter not in known:
            raise unknown_name(f"parameter of {name}", parameter, sorted(known) or ["none at all"])
    return cls(**(parameters or {}))


def _own_activation(path: str) -> type[nn.Module]:
    """The class that an import path leads to. A module is never imported here: a checkpoint must not run code."""
    module, _, name = str(path).rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise unknown_name("activation", path, [*ACTIVATIONS, "or the path of a class that is imported"])
    return cls


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
