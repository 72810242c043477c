"""How a hidden layer of `DeepMLP` is assembled from linear layers, normalization, activation and dropout."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

NormPosition = Literal["before_activation", "after_activation"]
BlockName = Literal["plain", "residual", "inverted_bottleneck"]

Make = Callable[[], nn.Module]


class Residual(nn.Sequential):
    """x + f(x), where f applies the layers in order (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, features) to the same shape."""
        output: Tensor = input + super().forward(input)  # type: ignore[no-untyped-call]
        return output


@dataclass(frozen=True)
class Blocks:
    """Builds hidden layers of one kind.

    - plain: linear, [norm], activation, [norm], [dropout].
    - residual: x + plain(x) where the input and output widths are equal, plain elsewhere.
    - inverted_bottleneck: x + linear(dropout(activation(linear(norm(x))))), `expansion` times as wide inside and with
      the norm first, as in MLP-Mixer (Tolstikhin et al. 2021, https://arxiv.org/abs/2105.01601) and in
      Bachmann et al. 2023 (https://arxiv.org/abs/2306.13575). Where the width changes, as in the first layer, it is a
      single linear layer.

    Args:
        block: The kind of layer.
        expansion: Inner width of an inverted bottleneck, relative to its outer width.
        bias: Whether linear layers have a bias.
        norm: Makes a normalization layer for a given number of features.
        norm_position: Whether the norm comes before or after the activation; it is always first in an inverted
            bottleneck.
        activation: Makes an activation layer.
    """

    block: BlockName
    expansion: int
    bias: bool
    norm: Callable[[int], nn.Module]
    norm_position: NormPosition
    activation: Make

    def make(self, fan_in: int, fan_out: int, dropout: nn.Module) -> nn.Sequential:
        """A hidden layer that maps (B, fan_in) to (B, fan_out)."""
        if self.block == "inverted_bottleneck":
            return self._make_bottleneck(fan_in, fan_out, dropout)
        middle = {"norm": self.norm(fan_out), "activation": self.activation()}
        if self.norm_position == "after_activation":
            middle = dict(reversed(middle.items()))
        cls = Residual if self.block == "residual" and fan_in == fan_out else nn.Sequential
        return chain(cls, linear=self._linear(fan_in, fan_out), **middle, dropout=dropout)

    def _make_bottleneck(self, fan_in: int, fan_out: int, dropout: nn.Module) -> nn.Sequential:
        if fan_in != fan_out:
            return chain(linear=self._linear(fan_in, fan_out))
        inside = self.expansion * fan_out
        return chain(
            Residual,
            norm=self.norm(fan_in),
            linear=self._linear(fan_in, inside),
            activation=self.activation(),
            dropout=dropout,
            projection=self._linear(inside, fan_out),
        )

    def _linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        return nn.Linear(fan_in, fan_out, bias=self.bias)

    def count_weights(self, fan_in: int, fan_out: int) -> int:
        """The number of weights in a hidden layer's linear layers, without biases."""
        is_bottleneck = self.block == "inverted_bottleneck" and fan_in == fan_out
        return fan_in * fan_out * (2 * self.expansion if is_bottleneck else 1)


def chain(cls: type[nn.Sequential] = nn.Sequential, **modules: nn.Module) -> nn.Sequential:
    """The modules in order, by name, leaving out identities."""
    return cls(OrderedDict((k, m) for k, m in modules.items() if not isinstance(m, nn.Identity)))
