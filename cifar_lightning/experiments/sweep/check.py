"""Rejects options and callbacks that do not work in a sweep."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging

from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.callbacks.signal_picture import SignalPicture

#: Precisions in which a copy's steps are those of its own training.
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
#: Callbacks that need a single network, learning rate or schedule, each with what to do instead.
UNSUITABLE_CALLBACKS: dict[type[Callback], str] = {
    LRFinder: "it finds one learning rate. Vary model.lr instead",
    SchedulePlot: "it plots one schedule. Each network's metrics.csv has its learning rates",
    SignalPicture: "it plots the layers of one network. Pass a network's checkpoint to cifar-lightning signals",
    BaseFinetuning: "it freezes layers of one network, and frozen layers cannot be stacked. Use a study",
    ModelPruning: "it prunes one network. Use a study",
    StochasticWeightAveraging: "it replaces all schedules with one. Use a study",
}


def refuse_what_has_no_meaning(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Reject options that do not work for several networks at once.

    Args:
        trainer: The sweep's trainer.
        callbacks: The sweep's callbacks.

    Raises:
        ValueError: If there are any.
    """
    for option, expected, received, reason in _asked_for(trainer):
        raise ValueError(f"--{option} does not work in a sweep: expected {expected}, since {reason}; got {received}")
    for callback in callbacks:
        for unsuitable, reason in UNSUITABLE_CALLBACKS.items():
            if isinstance(callback, unsuitable):
                raise ValueError(
                    f"{type(callback).__name__} does not work in a sweep: {reason} (--trainer.callbacks null removes "
                    "a config's callbacks)"
                )


def _asked_for(trainer: Trainer) -> Iterator[tuple[str, str, Any, str]]:
    """Rejected options: name, expected value, given value, and reason."""
    if trainer.precision not in PRECISIONS:
        reason = "others scale or convert all losses together, and one network that diverges would stop all"
        yield "trainer.precision", " or ".join(PRECISIONS), trainer.precision, reason
