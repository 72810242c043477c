"""Metrics of an epoch that a checkpoint can store halfway."""

from math import isfinite, nan
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from cifar_lightning.analysis.metrics import classification_metrics

#: Batches that are measured together: at batch 32, measuring a single one costs as much as the network.
BATCHES_AT_ONCE = 64

Row = dict[str, float]
Saved = dict[str, Any]


def better(new: Row, best: Row) -> Row:
    """The better of two validations, by the rule of `best.ckpt`: a later one needs a lower loss that is finite.

    It stands for an epoch with several, so that reports name the weights that `best.ckpt` has.

    Args:
        new: The metrics of the later validation.
        best: Those of the best one before; {} for none.
    """
    if "val_loss" not in best:
        return new
    loss = new.get("val_loss", nan)
    return new if isfinite(loss) and not loss >= best["val_loss"] else best  # (The best may be NaN.)


class EpochMetrics(nn.Module):
    """Loss and accuracies over the batches of an epoch so far.

    Args:
        num_classes: Number of logits.
        prefix: Prefix of the metrics' names.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        super().__init__()
        self._num_classes = num_classes
        self.metrics = classification_metrics(num_classes, prefix)
        self._pending: list[tuple[Tensor, Tensor]] = []  # batches not measured yet

    def __repr__(self) -> str:
        return f"EpochMetrics({', '.join(map(str, self.metrics.keys()))})"

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, num_classes), labels (B,)."""
        self._pending.append((logits, labels))
        if len(self._pending) == BATCHES_AT_ONCE:
            self._measure()

    def _measure(self) -> None:
        if self._pending:
            # (Restored batches are on the CPU: Lightning moves the module to its device only afterwards.)
            logits, labels = (
                torch.cat([part.to(self._device) for part in parts]) for parts in zip(*self._pending, strict=True)
            )
            self.metrics.update(logits.float(), labels)
            self._pending.clear()

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return the metrics by name, such as train_loss, and start over."""
        self._measure()
        values: dict[str, Tensor] = self.metrics.compute()
        self.reset()
        return values

    def reset(self) -> None:
        """Forget what was measured."""
        self._pending.clear()
        self.metrics.reset()

    def save(self, trainer: Trainer) -> Saved:
        """The sums so far, over all ranks, and the batches that they do not include yet.

        On several ranks the sums include all batches, which may round the mean loss differently.
        """
        if trainer.world_size > 1:
            self._measure()
        states: dict[str, Any] = {name: metric.metric_state for name, metric in self.metrics.items(keep_base=True)}
        sums = {
            name: {key: trainer.strategy.reduce(value.clone(), reduce_op="sum") for key, value in state.items()}
            for name, state in states.items()
        }
        return {"sums": sums, "pending": list(self._pending)}

    def restore(self, trainer: Trainer, saved: Saved) -> None:
        """Continue from a saved state. Only one rank takes it, so that it does not count twice."""
        pending = saved["pending"] if trainer.is_global_zero else []
        self._pending = list(pending)
        for name, metric in self.metrics.items(keep_base=True):
            # Without an update, torchmetrics warns that nothing was measured; this one's states are replaced.
            example = torch.zeros(1, self._num_classes), torch.zeros(1, dtype=torch.long)
            metric.update(*(part.to(self._device) for part in example))
            for key, value in saved["sums"][name].items():
                setattr(metric, key, (value if trainer.is_global_zero else torch.zeros_like(value)).to(self._device))

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self.metrics.values())).device
        return device
