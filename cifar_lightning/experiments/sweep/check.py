"""What has no meaning in a sweep, by the names of the options that ask for it."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.callbacks.signal_picture import SignalPicture

#: Precisions in which a copy's steps are those of its own training.
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
#: Callbacks that look for one network in the module, one rate or one schedule, each with what to do instead.
UNSUITABLE_CALLBACKS: dict[type[Callback], str] = {
    LRFinder: "it finds one rate; vary model.lr",
    SchedulePlot: "it draws one schedule; each copy's metrics.csv has its rates",
    SignalPicture: "it draws the layers of one network; cifar-lightning signals takes a copy's checkpoint",
    BaseFinetuning: "it freezes layers of one network, and frozen layers do not stack; use a study",
    ModelPruning: "it prunes one network; use a study",
    StochasticWeightAveraging: "it puts one schedule in the place of all; use a study",
    WeightAveraging: "its averages would not reach the copies' checkpoints; use a study",
}


def refuse_what_has_no_meaning(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Refuse options of a training that mean nothing for several networks at once.

    Args:
        trainer: Of the sweep.
        callbacks: The callbacks of the sweep.

    Raises:
        ValueError: If there are any.
    """
    for option, expected, received, reason in _asked_for(trainer):
        raise ValueError(f"--{option} is not for a sweep: expected {expected}, since {reason}; got {received}")
    for callback in callbacks:
        for unsuitable, reason in UNSUITABLE_CALLBACKS.items():
            if isinstance(callback, unsuitable):
                raise ValueError(
                    f"{type(callback).__name__} is not for a sweep: {reason}. Expected no such callback "
                    "(--trainer.callbacks null takes those of a config away), got it"
                )


def _asked_for(trainer: Trainer) -> Iterator[tuple[str, str, Any, str]]:
    """Options that are refused: name, what is expected, what was received, and why."""
    if trainer.precision not in PRECISIONS:
        reason = "any other scales or converts the networks' losses as one, and one that diverges would stop all"
        yield "trainer.precision", " or ".join(PRECISIONS), trainer.precision, reason
