"""A LightningModule from elsewhere: a small convolutional network that uses only `OneCycle` from this package."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cifar_lightning import OneCycle


class SmallCNN(LightningModule):
    """Two convolutions and a linear layer, for images of any size.

    Args:
        channels: Number of image channels.
        num_classes: Number of classes.
        lr: Peak learning rate of the 1cycle schedule.
    """

    def __init__(self, channels: int = 3, num_classes: int = 10, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
            nn.Linear(32 * 16, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), float32, to logits (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy."""
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", torch.eq(logits.argmax(1), batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Use SGD with the 1cycle policy."""
        optimizer = torch.optim.SGD(self.parameters(), self.hparams["lr"], momentum=0.9)
        scheduler = OneCycle().build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
