"""Trains a network's new layers before the reused ones."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer

from cifar_lightning.callbacks.pretrained import Pretrained


class FreezePretrained(BaseFinetuning):
    """Freezes the layers that `Pretrained` took from a trained network for some epochs, then trains all layers.

    The first gradients of a new output layer would wreck the reused ones. A frozen batch norm uses its running
    statistics without updating them, as in Keras.

    Args:
        epochs: Number of epochs for which the layers stay frozen.

    Raises:
        ValueError: If `epochs` is below 1; from `fit`, if there are several devices or no reused layers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import FreezePretrained, Pretrained
        >>> reuse = [Pretrained("runs/eight_classes/best.ckpt", layers=4), FreezePretrained(epochs=4)]
        >>> trainer = Trainer(logger=False, callbacks=reuse)
    """

    def __init__(self, epochs: int = 4) -> None:
        super().__init__()
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.epochs = epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject several devices: DDP does not average gradients of parameters that were frozen when it started."""
        if stage == "fit" and trainer.world_size > 1:
            raise ValueError(f"FreezePretrained works on one device only, got {trainer.world_size}")
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Do nothing yet: the reused layers are only known once the module is set up or restored."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze or unfreeze the layers depending on the epoch, which may be any after a resume."""
        self._train_layers(pl_module, trainer.current_epoch >= self.epochs)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the layers at epoch `epochs`; the optimizer has had them from the start."""
        if epoch == self.epochs:
            self._train_layers(pl_module, True)

    def _train_layers(self, pl_module: LightningModule, trainable: bool) -> None:
        callbacks = pl_module.trainer.callbacks  # type: ignore[attr-defined]
        sources = [callback for callback in callbacks if isinstance(callback, Pretrained)]
        layers = [layer for source in sources for layer in source.reused_layers(pl_module)]
        if not layers:
            raise ValueError(
                "FreezePretrained has nothing to freeze: expected reused layers, from --pretrained.checkpoint FILE, "
                "got none"
            )
        if trainable:
            self.make_trainable(layers)
        else:
            self.freeze(layers, train_bn=False)
        for module in self.flatten_modules(layers):
            if isinstance(module, nn.BatchNorm1d):
                module.train(trainable)
