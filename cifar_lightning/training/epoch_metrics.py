"""The metrics of an epoch."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from cifar_lightning.analysis.metrics import classification_metrics

#: Batches that are measured at a time: at batch 32, measuring one costs as much as the network.
BATCHES_AT_ONCE = 64

States = dict[str, dict[str, Tensor]]


class EpochMetrics(nn.Module):
    """Loss and accuracies of the batches of an epoch so far, which a checkpoint can hold.

    Args:
        num_classes: Number of logits.
        prefix: What the metrics' names begin with.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        super().__init__()
        self._num_classes = num_classes
        self.metrics = classification_metrics(num_classes, prefix)
        self._pending: list[tuple[Tensor, Tensor]] = []  # batches that the metrics have not seen yet

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, num_classes), labels (B,)."""
        self._pending.append((logits, labels))
        if len(self._pending) == BATCHES_AT_ONCE:
            self._measure()

    def _measure(self) -> None:
        if self._pending:
            logits, labels = map(torch.cat, zip(*self._pending, strict=True))
            self.metrics.update(logits.float(), labels)
            self._pending.clear()

    def compute_and_reset(self) -> dict[str, Tensor]:
        """The metrics by name, such as train_loss; the next epoch starts from nothing."""
        self._measure()
        values: dict[str, Tensor] = self.metrics.compute()
        self.metrics.reset()
        return values

    def save(self, trainer: Trainer) -> States:
        """The sums so far, over all ranks."""
        self._measure()
        sums: dict[str, Any] = {name: metric.metric_state for name, metric in self.metrics.items(keep_base=True)}
        return {
            name: {key: trainer.strategy.reduce(value.clone(), reduce_op="sum") for key, value in states.items()}
            for name, states in sums.items()
        }

    def restore(self, trainer: Trainer, saved: States) -> None:
        """Go on from the sums that `save` returned; one rank alone takes them, or they would count twice."""
        for name, metric in self.metrics.items(keep_base=True) if saved else ():
            device = metric.device
            # Without any update torchmetrics warns that nothing was measured; the states of this one are replaced.
            example = torch.zeros(1, self._num_classes), torch.zeros(1, dtype=torch.long)
            metric.update(*(part.to(device) for part in example))
            for key, value in saved[name].items():
                setattr(metric, key, (value if trainer.is_global_zero else torch.zeros_like(value)).to(device))
