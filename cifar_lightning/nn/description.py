"""A short description of a network."""

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifar_lightning.nn.mlp import DeepMLP


def describe_network(network: "DeepMLP") -> str:
    """Describe a network briefly, as in "20 x 100 selu, lecun_normal, batch norm"."""
    groups = [(len(list(group)), size) for size, group in groupby(network.hidden_sizes)]
    sizes = ", ".join(f"{count} x {size}" if count > 1 else str(size) for count, size in groups)
    parts = [f"{sizes} {network.activation}", network.init]
    if network.block != "plain":
        parts.append({"residual": "residual blocks", "inverted_bottleneck": "inverted bottlenecks"}[network.block])
    if network.normalization != "none":
        parts.append(f"{network.normalization} norm")
    if network.dropout != "none":
        parts.append(f"{network.dropout} dropout")
    return ", ".join(parts)
