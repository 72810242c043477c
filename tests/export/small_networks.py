"""Small networks with made-up statistics, and images for them."""

import torch

from cifar_lightning import ImageNetwork

SMALL = {"in_features": 48, "num_classes": 3, "hidden_sizes": [8, 8]}
CLASSES = ("cat", "dog", "ship")


def make_network(**options):
    torch.manual_seed(0)
    network = ImageNetwork(SMALL | options, CLASSES, (3, 4, 4))
    network.standardize.mean.fill_(120)
    network.standardize.std.copy_(torch.rand(3, 4, 4) * 30 + 50)
    network.standardize.scaling_index.fill_(3)
    network.temperature.value.fill_(1.7)
    return network.eval()


def make_images(count=20, shape=(3, 4, 4)):
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
