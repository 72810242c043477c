"""`LRFinder` and `OneCycle` with another LightningModule and its own data module: the rate it finds becomes the peak.

python examples/find_lr_of_a_cnn.py
"""

import torch
from lightning.pytorch import LightningDataModule, Trainer
from sklearn.datasets import load_digits
from small_cnn import SmallCNN
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning import LRFinder


class Digits(LightningDataModule):
    """scikit-learn's 1,797 handwritten digits: images (B, 1, 8, 8), float32, and labels (B,)."""

    def setup(self, stage: str) -> None:
        """Load and split the data."""
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        data = TensorDataset(images, torch.from_numpy(digits.target).long())
        self.train, self.val = torch.utils.data.random_split(data, [1500, 297])

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out images, in one batch."""
        return DataLoader(self.val, 297)


def main(epochs: int = 5, num_steps: int = 150) -> Trainer:
    """Find a learning rate and train with it."""
    finder = LRFinder(min_lr=1e-4, max_lr=10, num_steps=num_steps)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[finder], logger=False)
    trainer.fit(SmallCNN(channels=1), Digits())
    print(f"trained with a peak of {trainer.lightning_module.hparams['lr']:.2g}: {trainer.callback_metrics}")
    return trainer


if __name__ == "__main__":
    main()
