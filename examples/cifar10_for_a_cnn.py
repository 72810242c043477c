"""`CIFAR10DataModule` with another LightningModule, which then gets standardized batches.

python examples/cifar10_for_a_cnn.py
"""

from typing import Any

from lightning.pytorch import Trainer
from small_cnn import SmallCNN

from cifar_lightning import CIFAR10DataModule


def main(epochs: int = 3, **data: Any) -> Trainer:
    """Train the network; `data` are arguments of the data module."""
    module = CIFAR10DataModule(**{"scaling": "channel", "batch_size": 64} | data)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False)
    trainer.fit(SmallCNN(), module)
    print(f"validation accuracy {trainer.callback_metrics['val_accuracy']:.1%}")
    return trainer


if __name__ == "__main__":
    main()
