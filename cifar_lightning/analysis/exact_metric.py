"""Metrics that stay exact for any number of examples and any precision of the network."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

#: How far outside [0, 1] a probability may be because of rounding, even in half precision.
ROUNDING = 0.01


class ExactMetric(Metric):
    """A metric that sums in float64 and counts in int64, even inside a module converted to half precision.

    float32 sums stop growing at about 2^24 examples, float16 sums at 65,504. Apple's MPS has no float64, so sums are
    float32 there. `dtype` is the dtype of the sums. Results are rounded to float32, as loggers and callbacks expect.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)

    def add_sum(self, name: str, *shape: int) -> None:
        """Add a floating state, initially zero and summed over ranks."""
        self.add_state(name, torch.zeros(shape, dtype=self.dtype), dist_reduce_fx="sum")

    def add_count(self, name: str, *shape: int) -> None:
        """Add an integer state, initially zero and summed over ranks."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """Move the states to the device that `fn` moves to, but keep their precision.

        All conversions of a module go through this method, which torchmetrics extends to its states. There is no public
        hook to protect them from `module.to(torch.float16)`, which Lightning calls for half precision.
        """

        def move(state: Tensor) -> Tensor:
            device = fn(torch.empty(0, dtype=torch.float32, device=state.device)).device
            if not state.is_floating_point():
                return state.to(device)
            return state.to(device, torch.float32 if device.type == "mps" else torch.float64)

        return super()._apply(move, exclude_state)


class MeanMetric(ExactMetric):
    """The mean of `terms` over all examples."""

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("total")
        self.add_count("count")

    @abstractmethod
    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The term (B,) of each example, from predictions (B, K) in the dtype of the sums and the result of `check`."""

    def check_predictions(self, predictions: Tensor) -> None:
        """Raise a ValueError unless the predictions are valid input for `terms`: probabilities by default."""
        check_probabilities(self, predictions)

    def check(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return the target in the form `terms` expects: labels (B,), int64, by default.

        Raises:
            ValueError: If they are not labels of K classes.
        """
        return check_labels(self, predictions, target)

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Add a batch: predictions (B, K), target (B,).

        Raises:
            ValueError: If a shape, a dtype or a label is wrong.
        """
        self.check_predictions(predictions)
        terms = self.terms(predictions.to(self.dtype), self.check(predictions, target))
        self.total = self.total + terms.sum(dtype=self.dtype)
        self.count = self.count + len(predictions)

    def compute(self) -> Tensor:
        """The mean over all batches."""
        return (self.total / self.count).float()


def check_predictions(metric: Metric, predictions: Tensor) -> None:
    """Raise a ValueError unless `predictions` have the shape (B, K) and a floating dtype."""
    if predictions.ndim != 2 or not predictions.is_floating_point():
        raise ValueError(
            f"{type(metric).__name__}: wrong predictions: expected a floating dtype and the shape (B, K), for "
            f"B examples and K classes; got {predictions.dtype} of shape {tuple(predictions.shape)}"
        )


def check_probabilities(metric: Metric, predictions: Tensor) -> None:
    """Raise a ValueError unless `predictions`, (B, K), are probabilities up to rounding, or NaN."""
    check_predictions(metric, predictions)
    if predictions.numel() and bool(((predictions < -ROUNDING) | (predictions > 1 + ROUNDING)).any()):
        raise ValueError(
            f"{type(metric).__name__}: wrong predictions: expected probabilities between 0 and 1, as from a softmax; "
            f"got {predictions.min().item():.3g} to {predictions.max().item():.3g}"
        )


def check_labels(metric: Metric, predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the labels (B,) as int64.

    Raises:
        ValueError: Unless there is one integer between 0 and K - 1 for each of the predictions (B, K).
    """
    count, classes = predictions.shape
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != (count,) or not integers:
        raise ValueError(
            f"{type(metric).__name__}: wrong labels: expected the index of each example's class, as integers of "
            f"shape ({count},); got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.long()  # torch can't compare uint16
    low, high = torch.stack(labels.aminmax()).tolist() if count else (0, 0)  # one wait for a GPU
    if count and not 0 <= low <= high < classes:
        raise ValueError(f"{type(metric).__name__}: wrong labels: expected 0 to {classes - 1}, got {low} to {high}")
    return labels
