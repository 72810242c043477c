"""What a user might bring along: the tests copy it into an empty folder."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning import CIFAR10DataModule, MLPClassifier


class Wider(MLPClassifier):
    """Ours, with an argument more.

    Args:
        extra: How much wider.
    """

    def __init__(self, extra: int = 3, **options):
        super().__init__(**options)
        self.extra = extra


class Net(LightningModule):
    """A small convolutional network that knows nothing of this package."""

    def __init__(self, channels: int = 4, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(49 * channels, 10))

    def forward(self, images):
        return self.layers(images)

    def _loss(self, batch, name):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self._loss(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self._loss(batch, "val_loss")
        return self(batch[0])

    def test_step(self, batch, batch_idx):
        return self._loss(batch, "test_loss")

    def predict_step(self, batch, batch_idx):
        return self(batch[0])  # logits

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


class Bare(LightningModule):
    """Has no more than a training takes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Quiet(Bare):
    """Validates, and logs a loss by a name of its own."""

    def validation_step(self, batch, batch_idx):
        self.log("valid_loss", F.cross_entropy(self(batch[0]), batch[1]))


class Noise(LightningDataModule):
    """Images as floats, standardized already."""

    def __init__(self, size: int = 64):
        super().__init__()
        self.size = size

    def _loader(self):
        images = torch.randn(self.size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(self.size) % 10), batch_size=16)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class Half(CIFAR10DataModule):
    """Ours, with an argument more."""

    def __init__(self, half: bool = True, **options):
        super().__init__(**options)
        self.half = half


class Hello(Callback):
    def __init__(self, word: str = "hello"):
        self.word = word

    def on_fit_start(self, trainer, pl_module):
        print("Hello says", self.word)


class Swish2(nn.Module):
    def __init__(self, beta: float = 2.0):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Heavy(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1, momentum: float = 0.5):
        super().__init__(params, lr=lr, momentum=momentum)


def function():
    """No class at all."""


class Needs(Bare):
    """Has an argument without a default, and saves what it was given."""

    def __init__(self, width: int, name=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Sequential(nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 10))

    def test_step(self, batch, batch_idx):
        return self(batch[0])


class Named(Bare):
    """Has options that are called as ours and mean something else."""

    def __init__(
        self,
        optimizer: str = "adam",
        activation: str = "relu6",
        schedule: dict | None = None,
        hidden_sizes: str = "small",
        dropout: float = 0.1,
    ):
        super().__init__()


class Body(nn.Sequential):
    def __init__(self, width: int = 8):
        super().__init__(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 10))


class Composed(LightningModule):
    """Is given its parts."""

    def __init__(self, body: nn.Module, optimizer: OptimizerCallable = torch.optim.SGD):
        super().__init__()
        self.body, self.optimizer = body, optimizer

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.body(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        return self.body(batch[0])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Fixed(MLPClassifier):
    """Ours, of which only the rate can be chosen."""

    def __init__(self, lr: float = 0.01):
        super().__init__(lr=lr, hidden_sizes="1x8", activation="relu")
