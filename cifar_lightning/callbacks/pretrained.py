"""Starting a training from another network's layers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.nn.transfer import copy_hidden_layers
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.stacked_classifier import StackedClassifier


class Pretrained(Callback):
    """Start an `MLPClassifier`, or all of a stack, from the first hidden layers and standardization of a trained one.

    Args:
        checkpoint: The trained network's checkpoint, read in `fit`; None for a network that starts from its own
            weights.
        layers: Number of hidden layers; by default all of the trained network's.

    Raises:
        ValueError: If layers are given without a checkpoint; from `fit`, for a file that is no checkpoint, or layers
            that differ from those of the new network.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import Pretrained
        >>> trainer = Trainer(logger=False, callbacks=[Pretrained("runs/eight_classes/best.ckpt", layers=4)])
    """

    def __init__(self, checkpoint: str | None = None, layers: int | None = None) -> None:
        if checkpoint is None and layers is not None:
            raise ValueError(f"pretrained layers without a network: expected its checkpoint too, got {layers} layers")
        self.checkpoint, self.layers = checkpoint, layers
        self._reused = 0
        self._module: LightningModule | None = None  # which has the layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the layers, once a module."""
        if stage != "fit" or pl_module is self._module:
            return
        self._reused = 0
        if self.checkpoint is None:
            return
        read_checkpoint(Path(self.checkpoint))  # which says so if it is none
        for each in pl_module.classifiers if isinstance(pl_module, StackedClassifier) else [pl_module]:
            if not isinstance(each, MLPClassifier):
                raise ValueError(f"nothing to reuse layers in: expected an MLPClassifier, got {type(each).__name__}")
            source = type(each).load_from_checkpoint(self.checkpoint, map_location="cpu", weights_only=True)
            self._reused = copy_hidden_layers(source.network, each.network, self.layers)
            each.standardize.load_state_dict(source.standardize.state_dict())  # of the inputs that the layers expect

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of the module, whose layers may have come by a resume."""
        self._module = pl_module

    def reused_layers(self, pl_module: LightningModule) -> list[nn.Module]:
        """The normalization of the input and the hidden layers that came from the trained network; [] for none."""
        if not self._reused or not isinstance(pl_module, MLPClassifier):
            return []
        return [pl_module.network.input, *pl_module.network.hidden[: self._reused]]

    def state_dict(self) -> dict[str, Any]:
        """Which layers were reused."""
        return {"checkpoint": self.checkpoint, "layers": self.layers, "reused": self._reused}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep to what the resumed training started from."""
        self.checkpoint, self.layers, self._reused = (state_dict[name] for name in ("checkpoint", "layers", "reused"))
