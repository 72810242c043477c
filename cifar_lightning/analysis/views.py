"""Test-time augmentation: predictions averaged over several views of an image."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor


def views(images: Tensor, flip: bool, shift: int) -> Iterator[Tensor]:
    """Yield images (N, C, H, W) unchanged, then shifted by up to `shift` pixels each way, then all of these mirrored.

    Pixels that enter at an edge are a reflection of the image, as in training (`data.augment`).

    Raises:
        ValueError: If the shift is negative, or not smaller than the image.
    """
    height, width = images.shape[2:]
    if not 0 <= shift < min(height, width):
        raise ValueError(f"shift must be 0 to {min(height, width) - 1} pixels, less than an image's side; got {shift}")
    moves = sorted(product(range(-shift, shift + 1), repeat=2), key=lambda move: move != (0, 0))
    for mirrored in (images, images.flip(-1))[: 1 + flip]:
        for down, right in moves:
            lines, columns = _moved(height, down, images.device), _moved(width, right, images.device)
            yield mirrored[:, :, lines[:, None], columns] if (down, right) != (0, 0) else mirrored


def _moved(size: int, by: int, device: torch.device) -> Tensor:
    places = (torch.arange(size, device=device) - by).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def count_views(flip: bool, shift: int) -> int:
    """The number of views per image."""
    return (1 + flip) * (2 * shift + 1) ** 2


def predict_by_views(predict: Callable[[Tensor], Tensor], images: Tensor, flip: bool, shift: int) -> Tensor:
    """Average the probabilities (N, K) that `predict` returns over the `views` of images (N, C, H, W)."""
    mean: Tensor | None = None
    for count, view in enumerate(views(images, flip, shift), start=1):
        probabilities = predict(view)
        mean = probabilities.clone() if mean is None else mean.lerp_(probabilities, 1 / count)
    assert mean is not None, "there is always at least one view"
    return mean
