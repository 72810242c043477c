"""The ways to predict: one pass, several views, Monte-Carlo dropout, and an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cifar_lightning.analysis.mc_dropout import MCPrediction, dropout_modules, mc_predict
from cifar_lightning.analysis.views import count_views, predict_by_views
from cifar_lightning.callbacks.trained_networks import check_alike, load_trained
from cifar_lightning.training.classifier import MLPClassifier

Prediction = Tensor | MCPrediction


def is_classified(outputs: Any) -> TypeGuard[Tensor]:
    """Whether a step returned logits or probabilities (N, K); modules other than ours may return a loss."""
    return isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.is_floating_point()


def class_names(trainer: Trainer, module: LightningModule, count: int) -> list[str]:
    """The names of the classes from the module or the data module, or else their numbers."""
    images = getattr(trainer.datamodule, "images", None)  # type: ignore[attr-defined]
    names = getattr(module, "classes", None) or getattr(images, "classes", None)
    return list(names or map(str, range(count)))


@dataclass(frozen=True)
class Way:
    """A way to predict.

    Args:
        key: Prefix of its metrics in logs; "" for plain prediction.
        label: Its name in tables and plots.
    """

    key: str
    label: str


#: The most Monte-Carlo passes, whose mean is then known to three thousandths, and the most pixels of a move.
MOST_SAMPLES, MOST_PIXELS = 100_000, 100


class WaysToPredict:
    """Predicts plainly, with test-time augmentation, with Monte-Carlo dropout, and with an ensemble.

    Args:
        mc_samples: Number of Monte-Carlo dropout passes; 0 for none.
        ensemble: Checkpoints of the other members.
        tta_flip: Whether to use mirrored images as views.
        tta_shift: Largest shift of views in pixels; 0 for none.

    Raises:
        ValueError: If a number is negative or beyond all reason.
    """

    def __init__(
        self, mc_samples: int = 0, ensemble: Sequence[str] = (), tta_flip: bool = False, tta_shift: int = 0
    ) -> None:
        for name, number, most in (("mc_samples", mc_samples, MOST_SAMPLES), ("tta_shift", tta_shift, MOST_PIXELS)):
            if not 0 <= number <= most:
                raise ValueError(f"{name} must be from 0 to {most:,}, got {number:,}")
        self.mc_samples, self.ensemble = mc_samples, list(ensemble)
        self._views = tta_flip, tta_shift
        self._members: list[MLPClassifier] = []

    def prepare(self, module: LightningModule) -> None:
        """Load the other members.

        Raises:
            ValueError: If the module has no dropout to sample, or a member can't be loaded.
        """
        if self.mc_samples and not dropout_modules(module):
            raise ValueError(
                "Monte-Carlo dropout has nothing to sample: expected a network with dropout, p > 0, for "
                f"{self.mc_samples} samples, got one without"
            )
        kind = type(module) if isinstance(module, MLPClassifier) else MLPClassifier
        self._members = [load_trained(path, kind)[0] for path in self.ensemble]

    def check_members(self, module: LightningModule) -> None:
        """Check that the other members suit the module, whose own checkpoint must have been loaded.

        Raises:
            ValueError: If one has other classes, or the same in another order, or takes other images.
        """
        if isinstance(module, MLPClassifier):
            for path, member in zip(self.ensemble, self._members, strict=True):
                check_alike(path, member, module)

    def predict_every_way(
        self, module: LightningModule, images: Tensor, probabilities: Tensor
    ) -> dict[Way, Prediction]:
        """Predict images (B, ...), given their plain probabilities (B, K), in each of the ways."""
        ways: dict[Way, Prediction] = {Way("", "deterministic"): probabilities}
        count = count_views(*self._views)
        if count > 1:
            ways[Way("tta_", f"{count} views")] = seen = self._predict_views(module, images)
        if self.mc_samples:
            way = Way("mc_", f"MC dropout, {self.mc_samples} samples")
            ways[way] = mc_predict(module, images, self.mc_samples)
        if self._members:
            way = Way("ensemble_", f"ensemble of {1 + len(self._members)}")
            ways[way] = _mean(probabilities, [each.to(module.device).predict_proba(images) for each in self._members])
            if count > 1:
                members = [self._predict_views(member.to(module.device), images) for member in self._members]
                ways[Way("ensemble_tta_", f"{way.label}, {count} views")] = _mean(seen, members)
        return ways

    def predict(self, module: LightningModule, images: Tensor, probabilities: Tensor) -> Prediction:
        """Predict images in the last of the requested ways, since a prediction uses only one."""
        *_, prediction = self.predict_every_way(module, images, probabilities).values()
        return prediction

    def _predict_views(self, module: LightningModule, images: Tensor) -> Tensor:
        return predict_by_views(lambda view: module(view).float().softmax(-1), images, *self._views)


def _mean(first: Tensor, others: Sequence[Tensor]) -> Tensor:
    return torch.stack([first, *others]).mean(0)
