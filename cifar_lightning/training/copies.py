"""The networks that are trained together: each with what is known of its epochs, and whether it goes on."""

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
from cifar_lightning.training.lightning_internals import judge

Row = dict[str, float]
#: What is logged of steps.
STEP_METRICS = ("train_step_loss", "lr")
#: What a checkpoint keeps of a copy as it is.
KEPT = ("name", "seed", "values", "rows", "metrics", "best", "validated", "is_to_stop", "stopped_epoch")


@dataclass(eq=False)
class Copy:
    """One of the networks.

    Args:
        name: A name for people, and for a folder.
        classifier: The network with its hyperparameters and metrics.
        seed: Of its weights and, unless the data has an order of its own, of its batches.
        values: The options by which it differs from the others, for tables.
        stoppers: What judges when it is to stop.
    """

    name: str
    classifier: MLPClassifier
    seed: int
    values: dict[str, Any] = field(default_factory=dict)
    stoppers: list[EarlyStopping] = field(default_factory=list)
    #: The epochs so far, each with its number, counted from 1, and its metrics.
    rows: list[Row] = field(default_factory=list)
    #: The newest value of each metric.
    metrics: Row = field(default_factory=dict)
    #: The metrics of the lowest validation loss that is a number, with their epoch; {} for none.
    best: Row = field(default_factory=dict)
    #: Whether the last validation was the best.
    is_new_best: bool = False
    #: The metrics of this epoch's validation, if there was one.
    validated: Row = field(default_factory=dict)
    #: Whether it stops as soon as the trainer's least number of epochs and steps allows it.
    is_to_stop: bool = False
    #: The epoch in which it has stopped, counted from 1; None if it has not.
    stopped_epoch: int | None = None

    @property
    def has_stopped(self) -> bool:
        """Whether it is not trained any more."""
        return self.stopped_epoch is not None

    @property
    def schedule(self) -> Schedule:
        """Its schedule."""
        return build_schedule(self.classifier.hparams["schedule"])

    def make_optimizer(self) -> Optimizer:
        """Its optimizer, at the beginning of a training."""
        hparams = self.classifier.hparams
        return build_optimizer(hparams["optimizer"], self.classifier.network.parameters(), hparams["lr"])

    def end_validation(self, epoch: int | None) -> Row:
        """The metrics of a validation, in an epoch, counted from 1; None for one that is none of the training."""
        values = _numbers(self.classifier.val_metrics.compute_and_reset())
        if epoch is not None:
            self.metrics |= values
            self.validated, loss = values, values["val_loss"]
            self.is_new_best = not isnan(loss) and loss < self.best.get("val_loss", inf)
            if self.is_new_best:
                self.best = {"epoch": float(epoch), **values}
        return values

    def end_epoch(self, is_whole: bool, known: Mapping[str, float]) -> Row:
        """The training metrics of an epoch.

        Args:
            is_whole: Whether it is not cut short: a resume continues it then, for which the metrics stay as they are.
            known: What else stands in its row: its number, time and rate.
        """
        metrics = self.classifier.train_metrics
        values = _numbers((metrics if is_whole else copy.deepcopy(metrics)).compute_and_reset())
        self.metrics |= values
        self.rows.append({**known, **values, **self.validated})
        if is_whole:
            self.validated = {}
        return values

    def judge(self, at_epoch_end: bool) -> bool:
        """Whether one of the stoppers that judge now, at an epoch's end or after a validation, wants it to stop.

        Raises:
            RuntimeError: If there is no such metric.
        """
        verdicts = [judge(stopper, self.metrics, at_epoch_end) for stopper in self.stoppers]
        return any(verdicts)

    def save(self, trainer: Trainer) -> dict[str, Any]:
        """What is known of it, and the hyperparameters that it is made of, as primitives and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in KEPT} | {
            "hyper_parameters": dict(self.classifier.hparams),
            "train_metrics": self.classifier.train_metrics.save(trainer),
            "stoppers": [stopper.state_dict() for stopper in self.stoppers],
        }

    def restore(self, trainer: Trainer, saved: Mapping[str, Any], is_within_epoch: bool) -> None:
        """Go on from what `save` returned; the patience that is given now counts."""
        for name in KEPT:
            setattr(self, name, copy.deepcopy(saved[name]))
        for stopper, state in zip(self.stoppers, saved["stoppers"], strict=False):
            stopper.load_state_dict({**state, "patience": stopper.patience})
        if is_within_epoch:  # those of an epoch that has ended are of no more use
            self.classifier.train_metrics.restore(trainer, saved["train_metrics"])


class Copies(list[Copy]):
    """All of them."""

    @property
    def active(self) -> list[int]:
        """Indices of those that have not stopped."""
        return [index for index, each in enumerate(self) if not each.has_stopped]

    @property
    def seeds(self) -> list[int]:
        """Each seed once."""
        return list(dict.fromkeys(each.seed for each in self))

    @property
    def best(self) -> Copy | None:
        """The one with the lowest validation loss; None if none has any that is a number."""
        return min((each for each in self if each.best), key=lambda each: each.best["val_loss"], default=None)

    @property
    def epochs(self) -> int:
        """Number of the last epoch that was ended."""
        return max(len(each.rows) for each in self)

    def stop(self, epoch: int, at_epoch_end: bool, may_stop: bool) -> list[int]:
        """Let early stopping judge the active ones.

        Args:
            epoch: The present one, counted from 1.
            at_epoch_end: Whether it judges at an epoch's end, or after a validation.
            may_stop: Whether they may stop already; if not, they will as soon as they may.

        Returns:
            Indices of those that have stopped.
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
