"""A trained network with standardization and temperature, in plain torch."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.nn.hub import HubMethods
from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.nn.standardize import Standardize
from cifar_lightning.nn.temperature import Temperature

#: The hyperparameters that describe the network; the others describe its training.
NETWORK_OPTIONS = frozenset(signature(DeepMLP).parameters)


class ImageNetwork(HubMethods, nn.Module):
    """A classifier of uint8 images, without Lightning: standardization, `DeepMLP` and temperature in one module.

    It is the part of an `MLPClassifier` that classifies, and its state has the same names. `load_network` loads one
    from a file.

    Args:
        network: Arguments of `DeepMLP`.
        classes: Names of the classes; empty if unknown.
        shape: Shape of an image, (C, H, W).

    Raises:
        ValueError: If `DeepMLP` rejects a value, or the shape or the classes do not match the network.

    Example:
        >>> network = ImageNetwork({"hidden_sizes": [16]}).eval()
        >>> network.predict_proba(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, network: Mapping[str, Any], classes: Sequence[str] = (), shape: Sequence[int] = (3, 32, 32)
    ) -> None:
        super().__init__()
        self.network = DeepMLP(**network)
        self.standardize, self.temperature = Standardize(tuple(shape)), Temperature()
        self.classes, self.shape = tuple(classes), tuple(shape)
        values, outputs = self.standardize.mean.numel(), self.network.output.out_features
        if values != self.network.in_features or len(self.classes) not in (0, outputs):
            raise ValueError(
                f"images or classes do not match the network: expected {self.network.in_features} values per image "
                f"and {outputs} classes, got the shape {self.shape} and {len(self.classes)} classes"
            )
        self.options = {"network": dict(network), "classes": list(self.classes), "shape": list(self.shape)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), uint8, to logits (B, num_classes).

        Raises:
            ValueError: If the dtype or shape is wrong.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"wrong images: expected uint8 of shape (B, {', '.join(map(str, self.shape))}) from 0 to 255, "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        logits: Tensor = self.temperature(self.network(self.standardize(images)))
        return logits

    @torch.no_grad()
    def predict_proba(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), uint8, to probabilities (B, num_classes), in the network's current mode."""
        logits: Tensor = self(images)
        return logits.softmax(-1)

    def as_sequential(self) -> nn.Sequential:
        """The same layers as a `Sequential`, so that `mc_predict` runs those before the first dropout only once."""
        return nn.Sequential(self.standardize, self.network.as_sequential(), self.temperature)


class Probabilities(nn.Module):
    """An `ImageNetwork` whose forward pass returns probabilities, as in an exported file.

    Args:
        network: The network.
    """

    def __init__(self, network: ImageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), uint8, to probabilities (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits.softmax(-1)
