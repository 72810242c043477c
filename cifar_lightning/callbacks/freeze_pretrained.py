"""Training a network's new layers before the ones that it reuses."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer

from cifar_lightning.callbacks.pretrained import Pretrained


class FreezePretrained(BaseFinetuning):
    """Keep the layers that `Pretrained` took from a trained network as they are for some epochs; then train all.

    The first gradients of a new output layer would wreck them. A frozen batch norm standardizes by its running
    statistics, as Keras's does, and leaves them alone.

    Args:
        epochs: Number of epochs.

    Raises:
        ValueError: If it is below 1; from `fit`, on several devices, or if no layers are reused.

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
        """Refuse several devices: DDP averages no gradients of parameters that were frozen when it began."""
        if stage == "fit" and trainer.world_size > 1:
            raise ValueError(f"FreezePretrained is for one device: expected 1, got {trainer.world_size}")
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Nothing yet: which layers are reused is known when the module is set up, or restored from a checkpoint."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the layers, or train them, as the epoch demands: a resume may begin in the middle of any."""
        self._train_layers(pl_module, trainer.current_epoch >= self.epochs)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Train the layers from epoch `epochs` on; the optimizer has had them from the start."""
        if epoch == self.epochs:
            self._train_layers(pl_module, True)

    def _train_layers(self, pl_module: LightningModule, trainable: bool) -> None:
        callbacks = pl_module.trainer.callbacks  # type: ignore[attr-defined]
        sources = [callback for callback in callbacks if isinstance(callback, Pretrained)]
        layers = [layer for source in sources for layer in source.reused_layers(pl_module)]
        if not layers:
            raise ValueError(
                "FreezePretrained has nothing to freeze: expected a network that reuses layers, "
                "--pretrained.checkpoint FILE; got none"
            )
        if trainable:
            self.make_trainable(layers)
        else:
            self.freeze(layers, train_bn=False)
        for module in self.flatten_modules(layers):
            if isinstance(module, nn.BatchNorm1d):
                module.train(trainable)
