"""Training images that are mixed with others, and the class probabilities to learn from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from cifar_lightning.data.batches import as_floats, to_device


@dataclass(frozen=True)
class SoftLabels:
    """Mixup, CutMix and label smoothing: turns images and labels into mixed images and class probabilities.

    With both mixup and CutMix, each batch is mixed in one of the two ways, with a probability of 1/2.

    Args:
        num_classes: Number of classes.
        mixup: Parameter alpha of mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412), equation 1: images
            lambda x_i + (1 - lambda) x_j and targets lambda y_i + (1 - lambda) y_j, with lambda ~ Beta(alpha, alpha).
            One lambda per batch, as in the authors' code, but at least 1/2 (i and j are swapped otherwise), so that
            each image's own label counts most. 0 for none.
        cutmix: Parameter alpha of CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899), equation 1: pixels of x_j
            in a box, of x_i elsewhere, and targets lambda y_i + (1 - lambda) y_j, with lambda the share of x_i's
            pixels. The box has sqrt(1 - lambda) times the image's sides, with lambda ~ Beta(alpha, alpha), and lies
            anywhere within the image; it is the same for all images of a batch. 0 for none.
        label_smoothing: Share epsilon of the target that is spread evenly over all classes (Szegedy et al. 2016,
            section 7).
        teacher: Maps images (B, C, H, W), 0 to 255, to probabilities (B, num_classes); None for no distillation.
        teacher_weight: Share of the target that the teacher predicts for the very images that are learned from
            (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, at temperature 1). Cross-entropy is linear in its
            targets, so this is the weighted sum of both losses.

    Raises:
        ValueError: If a value is out of range.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    teacher_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"{name} must be 0 or a positive number, got {alpha}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must be in [0, 1], got {self.teacher_weight}")

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch; with several rows, (S, B), each row is mixed separately.

        Args:
            images: (..., B, C, H, W), uint8 or floating.
            labels: (..., B), int64 or uint8.

        Returns:
            Images of the same shape and targets (..., B, num_classes), or both unchanged if there is nothing to do.
        """
        if not (self.mixup or self.cutmix or self.label_smoothing or self.teacher):
            return images, labels
        targets = F.one_hot(labels.long(), self.num_classes).float()
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        if self.mixup or self.cutmix:
            of_pixels, of_labels = (
                to_device(share, images.device) for share in self._draw_shares(images, labels.shape[:-1])
            )
            partners = torch.rand(labels.shape, dtype=torch.float32, device=labels.device).argsort(-1)
            images = _mix(as_floats(images), partners, of_pixels[..., None, None, :, :])
            targets = _mix(targets, partners, of_labels[..., None, None])
        if self.teacher is not None:
            taught = self.teacher(images.flatten(0, labels.ndim - 1)).view_as(targets)
            targets = targets.lerp(taught, self.teacher_weight)
        return images, targets

    def _draw_shares(self, images: Tensor, rows: torch.Size) -> tuple[Tensor, Tensor]:
        """For each row, the shares that images keep of their own: of pixels (..., H, W) or (..., 1, 1), and of labels.

        Both are drawn on the CPU, so they are the same on all devices, and in float32, since torch can't draw them in
        the default dtype of a precision like bf16-true.
        """
        of_labels = torch.ones(rows, dtype=torch.float32)
        of_pixels = of_labels[..., None, None]
        if self.mixup:
            lam = _draw_beta(self.mixup, rows)
            of_labels = torch.maximum(lam, 1 - lam)
            of_pixels = of_labels[..., None, None]
        if self.cutmix:
            outside = _draw_outside(_draw_beta(self.cutmix, rows), images.shape[-2], images.shape[-1])
            cut = torch.rand(rows, dtype=torch.float32) < 0.5 if self.mixup else torch.ones(rows, dtype=torch.bool)
            of_pixels = torch.where(cut[..., None, None], outside, of_pixels)
            of_labels = torch.where(cut, outside.mean((-2, -1)), of_labels)
        return of_pixels, of_labels


def _draw_beta(alpha: float, shape: torch.Size) -> Tensor:
    """Draw from Beta(alpha, alpha) in float32."""
    concentration = torch.tensor(alpha, dtype=torch.float32)
    return Beta(concentration, concentration).sample(shape)


def _draw_outside(lam: Tensor, height: int, width: int) -> Tensor:
    """Where images (..., H, W) keep their own pixels: 0 in a box of area 1 - lam, (...), and 1 elsewhere."""
    is_inside = []
    for size in (height, width):
        length = ((1 - lam).sqrt() * size).long()[..., None]
        start = (torch.rand_like(lam)[..., None] * (size + 1 - length)).long()
        places = torch.arange(size)
        is_inside.append((places >= start) & (places < start + length))
    rows, columns = is_inside
    return 1 - (rows[..., :, None] & columns[..., None, :]).float()


def _mix(values: Tensor, partners: Tensor, own: Tensor) -> Tensor:
    """Mix each of (..., B, *) with its partner (..., B), keeping a share `own` of itself, which broadcasts to it."""
    *rows, size = partners.shape
    first = torch.arange(0, partners.numel(), size, device=partners.device).view(*rows, 1)
    # (`index_select` copies whole images; `take_along_dim` would copy single values, which takes ten times as long.)
    others = values.flatten(0, len(rows)).index_select(0, (partners + first).flatten()).view_as(values)
    return others.lerp(values, own.to(values.dtype))
