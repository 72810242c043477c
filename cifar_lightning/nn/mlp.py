"""The deep multilayer perceptron."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cifar_lightning.errors import unknown_name
from cifar_lightning.nn.blocks import BlockName, Blocks, NormPosition, chain
from cifar_lightning.nn.description import describe_network
from cifar_lightning.nn.hub import HubMethods
from cifar_lightning.nn.initializers import InitName, initialize_
from cifar_lightning.nn.layers import (
    ActivationName,
    DropoutName,
    NormalizationName,
    make_activation,
    make_dropout,
    make_normalization,
)
from cifar_lightning.primitives import as_primitives

DropoutPosition = Literal["last", "all", "input_and_all"]

#: More layers, or more weights (8 GiB), are taken for a typo: they would fill the memory.
MOST_LAYERS = 10_000
MOST_WEIGHTS = 2**31


def parse_hidden_sizes(sizes: Sequence[int] | str) -> list[int]:
    """The layer widths as a list; "20x100" stands for twenty layers of 100 units.

    Raises:
        ValueError: If there are none, if one is not a positive integer, or if there are more than `MOST_LAYERS`.
    """
    if isinstance(sizes, str):
        match = re.fullmatch(r"\s*(\d{1,18})\s*x\s*(\d{1,18})\s*", sizes)
        layers, width = (int(match[1]), int(match[2])) if match else (0, 0)
        _check_length(layers)
        parsed: list[int] = [width] * layers
    else:
        parsed = list(sizes) if isinstance(sizes, Iterable) else []
    if not parsed or not all(type(size) is int and size > 0 for size in parsed):
        raise ValueError(
            "hidden_sizes must be one or more positive integers, as in [300, 100], "
            f"or LAYERSxNEURONS, as in 20x100; got {sizes!r}"
        )
    _check_length(len(parsed))
    return parsed


def _check_length(layers: int) -> None:
    if layers > MOST_LAYERS:
        raise ValueError(f"hidden_sizes may have at most {MOST_LAYERS:,} layers, got {layers:,}")


class DeepMLP(HubMethods, nn.Module):
    """A deep multilayer perceptron for classification.

    Flatten, [norm], [dropout], hidden layers of (linear, [norm], activation, [norm], [dropout]), linear. Other kinds of
    hidden layer are chosen with `block`. The default network is self-normalizing: SELU, LeCun normal, no normalization,
    no dropout (Klambauer et al. 2017).

    Args:
        in_features: Number of input values per example, after flattening.
        num_classes: Number of logits.
        hidden_sizes: Width of each hidden layer, such as [300, 100], or "20x100" for twenty layers of 100 units.
        activation: Activation of the hidden layers: a name, or the import path of a class in an imported module.
        activation_args: Keyword arguments of the activation's class, such as {"negative_slope": 0.2}.
        init: Initializer of the hidden layers' weights; biases start at 0.
        output_init: Initializer of the output layer's weights.
        normalization: Normalization in each hidden layer.
        norm_position: Whether the normalization comes before or after the activation.
        block: Kind of hidden layer: plain, as above; residual, x + plain(x), where the width does not change; or
            inverted_bottleneck, x + linear(dropout(activation(linear(norm(x))))), in which the first hidden layer is
            linear only and one more normalization comes before the output (see `Blocks` for the sources).
        expansion: Inner width of an inverted bottleneck, relative to its outer width.
        norm_input: Whether to normalize the input too.
        norm_momentum: Weight of the current batch in batch norm's running statistics (1 minus Keras's momentum).
        norm_eps: Added to the variance in a normalization.
        bias: Whether hidden linear layers have a bias. None: all except those directly before a batch norm, which
            would cancel it.
        dropout: Kind of dropout.
        dropout_p: Probability of dropping an element, 0 <= p < 1.
        dropout_position: After the last hidden layer only, after every hidden layer, or also on the input.
        max_norm: Maximum Euclidean norm of the weights into each hidden unit (Keras's `max_norm` constraint),
            enforced by `constrain_`; None for no constraint.
        l1: Factor of the sum of absolute weights in `penalty`; biases are not penalized.
        l2: Factor of the sum of squared weights (Keras's `l2`: twice as strong as a `weight_decay` of the same value).

    Raises:
        ValueError: If a value is out of range or a name is unknown.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP
        >>> DeepMLP(in_features=12, num_classes=3, hidden_sizes="2x8")(torch.randn(5, 12)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int = 3072,
        num_classes: int = 10,
        hidden_sizes: Sequence[int] | str = "20x100",
        activation: ActivationName | str = "selu",
        activation_args: Mapping[str, Any] | None = None,
        init: InitName = "lecun_normal",
        output_init: InitName = "glorot_uniform",
        normalization: NormalizationName = "none",
        norm_position: NormPosition = "before_activation",
        block: BlockName = "plain",
        expansion: int = 4,
        norm_input: bool = False,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        bias: bool | None = None,
        dropout: DropoutName = "none",
        dropout_p: float = 0.1,
        dropout_position: DropoutPosition = "last",
        max_norm: float | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        given = as_primitives(locals())
        super().__init__()
        self.hidden_sizes = sizes = parse_hidden_sizes(given["hidden_sizes"])
        self.options = {name: given[name] for name in signature(DeepMLP).parameters} | {"hidden_sizes": sizes}
        _check_choices(in_features, num_classes, normalization, norm_position, norm_input, dropout_position, max_norm)
        _check_block(block, expansion, norm_position)
        for name, factor in (("l1", l1), ("l2", l2)):
            if not 0 <= factor < float("inf"):
                raise ValueError(f"{name} must be 0 or a positive number, got {factor}")
        is_bottleneck = block == "inverted_bottleneck"
        if bias is None:
            bias = not (normalization == "batch" and norm_position == "before_activation") or is_bottleneck
        self.in_features = in_features
        self.activation, self.init, self.normalization, self.block = activation, init, normalization, block
        self.dropout, self.max_norm, self.l1, self.l2 = dropout, max_norm, l1, l2

        def norm(features: int) -> nn.Module:
            return make_normalization(normalization, features, norm_momentum, norm_eps)

        def drop(here: bool) -> nn.Module:
            return make_dropout(dropout if here else "none", dropout_p)

        blocks = Blocks(
            block, expansion, bias, norm, norm_position, partial(make_activation, activation, activation_args)
        )
        self.input = chain(
            norm=norm(in_features) if norm_input else nn.Identity(),
            dropout=drop(dropout_position == "input_and_all"),
        )
        widths = list(pairwise([in_features, *sizes]))
        weights = sum(blocks.count_weights(*pair) for pair in widths) + sizes[-1] * num_classes
        if weights > MOST_WEIGHTS:
            raise ValueError(f"network too large: at most {MOST_WEIGHTS:,} weights are allowed, got {weights:,}")
        last = len(sizes) - 1
        self.hidden = nn.Sequential(
            *(blocks.make(*pair, drop(i == last or dropout_position != "last")) for i, pair in enumerate(widths))
        )
        self.before_output = chain(norm=norm(sizes[-1]) if is_bottleneck else nn.Identity())
        self.output = nn.Linear(sizes[-1], num_classes)
        self._initialize(init, output_init)
        if activation == "selu" and (gaps := self.self_normalization_gaps()):
            warnings.warn(f"this SELU network does not normalize itself: {'; '.join(gaps)}", stacklevel=2)

    def _initialize(self, init: InitName, output_init: InitName) -> None:
        for linear in self.linears():
            initialize_(linear.weight, output_init if linear is self.output else init)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def __repr__(self) -> str:
        # Torch's own is a hundred lines for twenty layers; `print(network.hidden)` shows them.
        count = sum(parameter.numel() for parameter in self.parameters())
        ends = self.in_features, self.options["num_classes"]
        return f"{type(self).__name__}({ends[0]} -> {describe_network(self)} -> {ends[1]}; {count:,} parameters)"

    def linears(self) -> list[nn.Linear]:
        """All linear layers, from the first hidden layer to the output."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (B, ...), with `in_features` values per example, to logits (B, num_classes).

        Raises:
            ValueError: If an example has a different number of values.
        """
        x = x.flatten(1)  # (B, in_features)
        if x.shape[1] != self.in_features:
            raise ValueError(f"wrong input shape: expected {self.in_features} values per example, got {x.shape[1]}")
        logits: Tensor = self.output(self.before_output(self.hidden(self.input(x))))
        return logits

    def as_sequential(self) -> nn.Sequential:
        """The same layers as a `Sequential`, for running only some of them."""
        return nn.Sequential(nn.Flatten(), self.input, self.hidden, self.before_output, self.output)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Scale the weights into each hidden unit down to norm `max_norm`, unless frozen. Call it after each step."""
        if self.max_norm is not None:
            for linear in (linear for linear in self.linears()[:-1] if linear.weight.requires_grad):
                linear.weight.copy_(torch.renorm(linear.weight, p=2, dim=0, maxnorm=self.max_norm))

    def penalty(self) -> Tensor | float:
        """The regularization term to add to the loss: `weight_penalty` with the network's l1 and l2; 0 without them."""
        return weight_penalty(self, self.l1, self.l2) if self.l1 or self.l2 else 0.0

    def self_normalization_gaps(self, standardized_input: bool = True) -> list[str]:
        """The reasons why the network is not self-normalizing (Klambauer et al. 2017); empty if it is.

        Args:
            standardized_input: Whether each input feature has mean 0 and variance 1.
        """
        conditions = {
            f"the activation is {self.activation}: only SELU has mean 0 and variance 1 as a stable fixed point": (
                self.activation == "selu"
            ),
            f"the initializer is {self.init}: the fixed point needs weights of variance 1/fan_in, LeCun's": (
                self.init.startswith("lecun")
            ),
            "the input is not standardized: the first layer needs mean 0 and variance 1": standardized_input,
            f"the dropout is {self.dropout}: only alpha dropout keeps mean and variance": self.dropout != "standard",
            f"there is {self.normalization} normalization: it replaces self-normalization": (
                self.normalization == "none"
            ),
            f"the blocks are {self.block}: a skip connection adds its variance to the layer's": self.block == "plain",
            "max_norm is set: it moves the weights away from variance 1/fan_in": self.max_norm is None,
        }
        return [gap for gap, holds in conditions.items() if not holds]

    def is_self_normalizing(self, standardized_input: bool = True) -> bool:
        """Whether there are no `self_normalization_gaps`."""
        return not self.self_normalization_gaps(standardized_input)


def weight_penalty(module: nn.Module, l1: float, l2: float) -> Tensor:
    """l1 Σ |w| + l2 Σ w² over the weights w of a module's linear layers; l1 and l2 must not both be 0."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    terms = [l1 * weight.abs().sum() for weight in weights if l1] + [
        l2 * weight.square().sum() for weight in weights if l2
    ]
    return torch.stack(terms).sum()


def _check_choices(
    in_features: int,
    num_classes: int,
    normalization: NormalizationName,
    norm_position: NormPosition,
    norm_input: bool,
    dropout_position: DropoutPosition,
    max_norm: float | None,
) -> None:
    if in_features < 1 or num_classes < 1:
        raise ValueError(
            "in_features and num_classes must be at least 1, "
            f"got in_features={in_features} and num_classes={num_classes}"
        )
    if norm_position not in get_args(NormPosition):
        raise unknown_name("norm_position", norm_position, get_args(NormPosition))
    if norm_input and normalization == "none":
        raise ValueError("norm_input needs a normalization: 'batch' or 'layer', got 'none'")
    if dropout_position not in get_args(DropoutPosition):
        raise unknown_name("dropout_position", dropout_position, get_args(DropoutPosition))
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be a positive number or null, got {max_norm}")


def _check_block(block: BlockName, expansion: int, norm_position: NormPosition) -> None:
    if block not in get_args(BlockName):
        raise unknown_name("block", block, get_args(BlockName))
    if expansion < 1:
        raise ValueError(f"expansion must be at least 1, got {expansion}")
    if block == "inverted_bottleneck" and norm_position == "after_activation":
        raise ValueError(
            "norm_position must be 'before_activation', the default, in an inverted bottleneck, where the norm always "
            "comes first; got 'after_activation'"
        )
