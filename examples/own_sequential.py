"""Alpha dropout and LeCun initialization in your own `nn.Sequential`, under `torch.compile`.

python examples/own_sequential.py
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import AlphaDropout, initialize_


def make_network(in_features: int, num_classes: int, width: int = 64, p: float = 0.05) -> nn.Sequential:
    """Three self-normalizing layers and an output layer."""
    sizes = [in_features, width, width, width]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        initialize_(linear.weight, "lecun_normal")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU(), AlphaDropout(p)]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def train(steps: int = 200, backend: str = "inductor") -> list[float]:
    """Learn which of two noisy rings a point is on, and return the losses."""
    network = make_network(2, 2)
    compiled = torch.compile(network, backend=backend)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        y = torch.randint(2, (128,))
        x = F.normalize(torch.randn(128, 2)) * (1 + y[:, None]) + 0.1 * torch.randn(128, 2)
        loss = F.cross_entropy(compiled(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    history = train()
    print(f"loss {history[0]:.3f} at the start, {history[-1]:.3f} at the end")
