"""`DeepMLP` in a plain PyTorch loop: uint8 images, standardization and a 1cycle schedule, without Lightning.

python examples/plain_pytorch.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from cifar_lightning import DeepMLP, OneCycle, Standardize, compute_statistics


def train(images: Tensor, labels: Tensor, epochs: int = 10, batch_size: int = 128, lr: float = 0.02) -> nn.Module:
    """Train on images (N, 3, 32, 32), uint8, and labels (N,); return a module that maps such images to logits."""
    standardize = Standardize()
    standardize.set_statistics(compute_statistics(images, "feature"))
    model = nn.Sequential(standardize, DeepMLP(hidden_sizes="20x100", dropout="alpha"))
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    steps = epochs * -(-len(images) // batch_size)
    scheduler = OneCycle().build(optimizer, steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}")
    return model.eval()


if __name__ == "__main__":
    data = CIFAR10("data", download=True)
    train(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))
