"""What is measured of a classifier, from its logits."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class CrossEntropy(Metric):
    """Mean cross-entropy, in nats, of logits (B, K) against labels (B,)."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        self.total += F.cross_entropy(logits, labels, reduction="sum")
        self.count += len(labels)

    def compute(self) -> Tensor:
        """The mean over all batches."""
        return self.total / self.count


def classification_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """Loss, accuracy and top-3 accuracy of logits (B, num_classes) against labels (B,)."""
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": CrossEntropy(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "top3_accuracy": MulticlassAccuracy(
            num_classes, top_k=min(3, num_classes), average="micro", validate_args=False
        ),
    }
    # torchmetrics would merge metrics whose first states happen to be equal, as accuracy's and top-3's can be.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
