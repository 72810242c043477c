"""The networks of a sweep, trained together: each with its epochs' metrics and whether it is still training."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.optim.class_paths import build_optimizer, build_schedule
from cifar_lightning.optim.schedule import Schedule
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.epoch_metrics import Row, better
from cifar_lightning.training.lightning_internals import judge

#: Metrics that are logged per step.
STEP_METRICS = ("train_step_loss", "lr")
#: Attributes of a copy that a checkpoint stores unchanged.
KEPT = ("name", "seed", "values", "rows", "metrics", "best", "validated", "is_to_stop", "stopped_epoch")


@dataclass(eq=False)
class Copy:
    """One of the networks.

    Args:
        name: Its name, also used for its folder.
        classifier: The network with its hyperparameters and metrics.
        seed: Seed of its weights and, unless the data sets its own, of its batch order.
        values: The options in which it differs from the others, for tables.
        stoppers: Early stopping callbacks that decide when it stops.
    """

    name: str
    classifier: MLPClassifier
    seed: int
    values: dict[str, Any] = field(default_factory=dict)
    stoppers: list[EarlyStopping] = field(default_factory=list)
    #: The epochs so far, each with its number, from 1, and its metrics.
    rows: list[Row] = field(default_factory=list)
    #: The latest value of each metric.
    metrics: Row = field(default_factory=dict)
    #: The metrics and epoch of the lowest validation loss, ignoring NaN; {} for none.
    best: Row = field(default_factory=dict)
    #: Whether the last validation was the best.
    is_new_best: bool = False
    #: The metrics of this epoch's best validation; {} if there was none.
    validated: Row = field(default_factory=dict)
    #: Those of a validation that only ran because training stopped; a resumed run has none.
    at_stop: Row = field(default_factory=dict)
    #: Whether it stops as soon as the trainer's minimum number of epochs and steps allows.
    is_to_stop: bool = False
    #: The epoch in which it stopped, from 1; None if it has not.
    stopped_epoch: int | None = None

    @property
    def has_stopped(self) -> bool:
        """Whether it has stopped training."""
        return self.stopped_epoch is not None

    @property
    def schedule(self) -> Schedule:
        """Its schedule."""
        return build_schedule(self.classifier.hparams["schedule"])

    def make_optimizer(self) -> Optimizer:
        """A new optimizer for it."""
        hparams = self.classifier.hparams
        return build_optimizer(hparams["optimizer"], self.classifier.network.parameters(), hparams["lr"])

    def end_validation(self, epoch: int | None, is_due: bool) -> Row:
        """Return the metrics of a validation.

        Args:
            epoch: The epoch, counted from 1; None for the sanity check.
            is_due: Whether it would also run if training did not stop.
        """
        values = _numbers(self.classifier.val_metrics.compute_and_reset())
        if epoch is not None:
            self.metrics |= values
            if is_due:
                self.validated = better(values, self.validated)
            else:
                self.at_stop = values
            loss = values["val_loss"]
            self.is_new_best = not isnan(loss) and loss < self.best.get("val_loss", inf)
            if self.is_new_best:
                self.best = {"epoch": float(epoch), **values}
        return values

    def end_epoch(self, is_whole: bool, known: Mapping[str, float]) -> Row:
        """Return the training metrics of an epoch.

        Args:
            is_whole: Whether the epoch is complete. An epoch that is cut short keeps its metrics, since a resumed run
                continues it.
            known: Other entries of its row: its number, time and learning rate.
        """
        metrics = self.classifier.train_metrics
        values = _numbers((metrics if is_whole else copy.deepcopy(metrics)).compute_and_reset())
        self.metrics |= values
        self.rows.append({**known, **values, **better(self.at_stop, self.validated)})
        if is_whole:
            self.validated = {}
        return values

    def judge(self, at_epoch_end: bool) -> bool:
        """Whether a stopper that checks now, at the end of an epoch or after a validation, wants it to stop.

        Raises:
            RuntimeError: If there is no such metric.
        """
        verdicts = [judge(stopper, self.metrics, at_epoch_end) for stopper in self.stoppers]
        return any(verdicts)

    def save(self, trainer: Trainer) -> dict[str, Any]:
        """Its state and hyperparameters as primitives and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in KEPT} | {
            "hyper_parameters": dict(self.classifier.hparams),
            "train_metrics": self.classifier.train_metrics.save(trainer),
            "stoppers": [stopper.state_dict() for stopper in self.stoppers],
        }

    def restore(self, trainer: Trainer, saved: Mapping[str, Any], is_within_epoch: bool) -> None:
        """Continue from a saved state, but with the current patience."""
        for name in KEPT:
            setattr(self, name, copy.deepcopy(saved[name]))
        for stopper, state in zip(self.stoppers, saved["stoppers"], strict=False):
            stopper.load_state_dict({**state, "patience": stopper.patience})
        if is_within_epoch:  # metrics of a finished epoch are not needed
            self.classifier.train_metrics.restore(trainer, saved["train_metrics"])


class Copies(list[Copy]):
    """All networks of a sweep."""

    @property
    def active(self) -> list[int]:
        """Indices of the networks that have not stopped."""
        return [index for index, each in enumerate(self) if not each.has_stopped]

    @property
    def stopped(self) -> list[int]:
        """Indices of the networks that have stopped."""
        return [index for index, each in enumerate(self) if each.has_stopped]

    @property
    def seeds(self) -> list[int]:
        """The distinct seeds, in order."""
        return list(dict.fromkeys(each.seed for each in self))

    @property
    def best(self) -> Copy | None:
        """The network with the lowest validation loss; None if no loss is a number."""
        return min((each for each in self if each.best), key=lambda each: each.best["val_loss"], default=None)

    @property
    def epochs(self) -> int:
        """Number of the last finished epoch."""
        return max(len(each.rows) for each in self)

    def stop(self, epoch: int, at_epoch_end: bool, may_stop: bool) -> list[int]:
        """Apply early stopping to the active networks.

        Args:
            epoch: The current epoch, counted from 1.
            at_epoch_end: Whether this is the end of an epoch rather than of a validation.
            may_stop: Whether networks may stop yet; if not, they will as soon as they may.

        Returns:
            Indices of the networks that have stopped.
        """
        stopped = []
        for index in self.active:
            each = self[index]
            each.is_to_stop |= each.judge(at_epoch_end)
            if each.is_to_stop and may_stop:
                each.stopped_epoch = epoch
                stopped.append(index)
        return stopped


def _numbers(values: Mapping[str, Tensor]) -> Row:
    return {name: value.item() for name, value in values.items()}
