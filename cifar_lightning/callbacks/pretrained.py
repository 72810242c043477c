"""Starts training from another network's layers."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cifar_lightning.callbacks.trained_networks import load_trained
from cifar_lightning.nn.transfer import copy_hidden_layers
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.stacked_classifier import StackedClassifier


class Pretrained(Callback):
    """Initializes an `MLPClassifier`, or a whole sweep, with the first layers and standardization of a trained network.

    Args:
        checkpoint: Checkpoint of the trained network, read in `fit`; None to start from random weights.
        layers: Number of hidden layers to reuse; all of the trained network's by default.

    Raises:
        ValueError: If layers are given without a checkpoint; from `fit`, if the file is not a checkpoint or its layers
            differ from those of the new network.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import Pretrained
        >>> trainer = Trainer(logger=False, callbacks=[Pretrained("runs/eight_classes/best.ckpt", layers=4)])
    """

    def __init__(self, checkpoint: str | None = None, layers: int | None = None) -> None:
        if checkpoint is None and layers is not None:
            raise ValueError(f"pretrained.layers needs pretrained.checkpoint too, got only {layers} layers")
        self.checkpoint, self.layers = checkpoint, layers
        self._reused = 0
        self._module: LightningModule | None = None  # the module that has the layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the layers, once per module."""
        if stage != "fit" or pl_module is self._module:
            return
        self._reused = 0
        if self.checkpoint is None:
            return
        for each in pl_module.classifiers if isinstance(pl_module, StackedClassifier) else [pl_module]:
            if not isinstance(each, MLPClassifier):
                raise ValueError(f"only an MLPClassifier can reuse layers, got {type(each).__name__}")
            source, _ = load_trained(self.checkpoint, type(each))
            self._reused = copy_hidden_layers(source.network, each.network, self.layers)
            each.standardize.load_state_dict(source.standardize.state_dict())  # the layers expect these inputs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the module; on a resume, its layers come from the checkpoint."""
        self._module = pl_module

    def reused_layers(self, pl_module: LightningModule) -> list[nn.Module]:
        """The input normalization and hidden layers that come from the trained network; [] for none."""
        if not self._reused or not isinstance(pl_module, MLPClassifier):
            return []
        return [pl_module.network.input, *pl_module.network.hidden[: self._reused]]

    def state_dict(self) -> dict[str, Any]:
        """Which layers were reused."""
        return {"checkpoint": self.checkpoint, "layers": self.layers, "reused": self._reused}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the resumed run started from."""
        self.checkpoint, self.layers, self._reused = (state_dict[name] for name in ("checkpoint", "layers", "reused"))
