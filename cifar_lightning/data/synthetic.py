"""A synthetic data set in CIFAR-10's format: ten procedural classes, so everything runs without any files."""

import torch
from torch import Generator, Tensor

SIZE = 32
CLASSES = (
    "disc",
    "square",
    "triangle",
    "cross",
    "ring",
    "rows",
    "columns",
    "diagonals",
    "checkers",
    "dots",
)


def synthetic_images(
    train_size: int, test_size: int, seed: int = 0
) -> tuple[tuple[str, ...], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Make the class names and (images, labels) for training and testing.

    Each image shows its class's shape or texture with a random position, scale and colour on a shaded background with
    noise. Images are (N, 3, 32, 32), uint8; labels are (N,), int64. The same seed gives the same images.
    """
    generator = Generator().manual_seed(seed)
    return CLASSES, _draw(train_size, generator), _draw(test_size, generator)


def _draw(count: int, generator: Generator, chunk: int = 2000) -> tuple[Tensor, Tensor]:
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    images = [_draw_chunk(part, generator) for part in labels.split(chunk)]
    return torch.cat(images), labels


def _draw_chunk(labels: Tensor, generator: Generator) -> Tensor:
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    axis = torch.linspace(-1, 1, SIZE)
    # Coordinates relative to the shape's centre, in units of its radius: (N, 32, 32).
    radius = uniform(0.45, 0.8, 1, 1)
    x = (axis.view(1, 1, SIZE) - uniform(-0.25, 0.25, 1, 1)) / radius
    y = (axis.view(1, SIZE, 1) - uniform(-0.25, 0.25, 1, 1)) / radius
    x, y = x.expand(n, SIZE, SIZE), y.expand(n, SIZE, SIZE)
    masks = _masks(x, y)
    mask = torch.zeros(n, SIZE, SIZE)
    for index, name in enumerate(CLASSES):
        of_class = labels == index
        mask[of_class] = masks[name][of_class].float()

    # Colours: a background shaded from one side to the other, and a brighter foreground. (N, 3, 1, 1)
    background = uniform(40, 150, 3, 1, 1)
    slope = uniform(-40, 40, 3, 1, 1) * axis.view(1, 1, 1, SIZE)
    contrast = uniform(30, 90, 3, 1, 1)
    image = background + slope + contrast * mask.unsqueeze(1)
    noise = torch.randn(n, 3, SIZE, SIZE, generator=generator) * 20
    return (image + noise).clamp(0, 255).to(torch.uint8)


def _masks(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The mask of each class's shape, (N, 32, 32), bool, as a function of the coordinates."""
    r2 = x**2 + y**2
    largest = torch.maximum(x.abs(), y.abs())
    inside = largest < 1
    row, column = (2.5 * y).floor() % 2 < 1, (2.5 * x).floor() % 2 < 1
    return {
        "disc": r2 < 1,
        "square": largest < 0.8,
        "triangle": (y < 0.8) & (y > 2 * x.abs() - 1),
        "cross": (torch.minimum(x.abs(), y.abs()) < 0.3) & inside,
        "ring": (r2 < 1) & (r2 > 0.4),
        "rows": row & inside,
        "columns": column & inside,
        "diagonals": ((2.5 * (x + y)).floor() % 2 < 1) & inside,
        "checkers": (row ^ column) & inside,
        "dots": ((x * 2.5 % 1 - 0.5) ** 2 + (y * 2.5 % 1 - 0.5) ** 2 < 0.1) & inside,
    }
