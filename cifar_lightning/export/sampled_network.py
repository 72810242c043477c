"""Monte-Carlo dropout whose masks depend only on seeds, so that any runtime draws the same ones."""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from cifar_lightning.analysis.mc_dropout import entropy
from cifar_lightning.export.image_network import ImageNetwork
from cifar_lightning.nn.alpha_dropout import ALPHA_PRIME, affine_correction
from cifar_lightning.nn.blocks import Residual

#: The multiplicative constants of an integer hash with low bias; both are below 2^31, so int64 holds each product.
#: (C. Wellons, "Prospecting for Hash Functions", 2018.)
FACTORS = ((16, 0x21F0AAAD), (15, 0x735A2D97))
MASK = 2**32 - 1


def hash_32(x: Tensor) -> Tensor:
    """Map integers, int64, from 0 to 2^32 - 1 to such integers, one to one and without visible order."""
    for shift, factor in FACTORS:
        x = ((x ^ (x >> shift)) * factor) & MASK
    return x ^ (x >> 15)


class SeededDropout(nn.Module):
    """Standard or alpha dropout in S passes at once, each with a mask determined by its seed.

    Unit i of the batch is dropped where hash(hash(seed) ^ hash(i + layer's number)) < p · 2^32.

    Args:
        layer: The dropout layer that it replaces.
        number: Index among the network's dropout layers.
    """

    def __init__(self, layer: nn.Dropout | nn.AlphaDropout, number: int) -> None:
        super().__init__()
        self.p, self.number = layer.p, number
        if isinstance(layer, nn.AlphaDropout):
            self.scale, self.shift = affine_correction(self.p)
            self.dropped = self.scale * ALPHA_PRIME + self.shift
        else:
            self.scale, self.shift, self.dropped = 1 / (1 - self.p), 0.0, 0.0

    def forward(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Map (S, B, F), or (1, B, F) of passes that are alike so far, with seeds (S,) to (S, B, F)."""
        units = torch.arange(x.shape[1] * x.shape[2], device=x.device).reshape(1, x.shape[1], x.shape[2])
        passes = hash_32(seeds & MASK).reshape(-1, 1, 1)
        drawn = hash_32(passes ^ hash_32((units + self.number * 0x9E3779B1) & MASK))
        kept = x * self.scale + self.shift
        return torch.where(drawn < round(self.p * 2**32), torch.full_like(kept, self.dropped), kept)


class Passes(nn.Module):
    """Runs a sequence of layers in S passes at once.

    Args:
        layers: The layers, which may be sequences themselves; `Residual` adds its input.
        numbers: Provides each dropout layer's number.
    """

    def __init__(self, layers: nn.Sequential, numbers: Iterator[int]) -> None:
        super().__init__()
        self.adds_input = isinstance(layers, Residual)
        self.layers = nn.ModuleList(_in_passes(layer, numbers) for layer in layers)

    def forward(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Map (S, B, F), or (1, B, F) of passes that are alike so far, with seeds (S,) to the same."""
        y = x
        for layer in self.layers:
            if isinstance(layer, SeededDropout | Passes):
                y = layer(y, seeds)
            else:
                y = layer(y.flatten(0, 1)).unflatten(0, (y.shape[0], y.shape[1]))
        return x + y if self.adds_input else y


def _in_passes(layer: nn.Module, numbers: Iterator[int]) -> nn.Module:
    if isinstance(layer, nn.Sequential):
        return Passes(layer, numbers)
    if isinstance(layer, nn.Dropout | nn.AlphaDropout):
        return SeededDropout(layer, next(numbers)) if layer.p else nn.Identity()
    return layer


class SampledNetwork(nn.Module):
    """An `ImageNetwork` with Monte-Carlo dropout, which takes images and a seed per pass.

    The same seeds give the same probabilities in every runtime, up to rounding. All passes are computed at once.

    Args:
        network: The network, which must have dropout.

    Raises:
        ValueError: If there is no dropout of p > 0.
    """

    def __init__(self, network: ImageNetwork) -> None:
        super().__init__()
        self.network, self.passes = network, Passes(network.network.as_sequential(), count())
        if not any(isinstance(layer, SeededDropout) for layer in self.passes.modules()):
            raise ValueError(
                "Monte-Carlo dropout has nothing to sample: expected a network with dropout, p > 0, got none"
            )

    def forward(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict with one pass per seed.

        Args:
            images: (B, C, H, W), uint8.
            seeds: (S,), int64.

        Returns:
            The mean probabilities (B, K), their standard deviation over the passes (B, K), and the mutual information
            (B,), in nats.
        """
        x = self.network.standardize(images).flatten(1).unsqueeze(0)  # (1, B, F), and (S, B, F) from a dropout on
        p = self.network.temperature(self.passes(x, seeds)).softmax(-1)
        mean = p.mean(0)
        information = entropy(mean) - entropy(p).mean(0)
        return mean, (p - mean).square().mean(0).sqrt(), information.clamp(min=0)
