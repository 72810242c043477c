"""Schedules that go by a validation metric, stepped before the validation's checkpoint is written.

Lightning would step them after that, and not at all in an epoch that is resumed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cifar_lightning.training.lightning_internals import validation_is_due


def plateau_configs(trainer: Trainer, metrics: Iterable[object]) -> list[Any]:
    """Lightning's configurations of the schedulers that go by one of these metrics."""
    configs: list[Any] = trainer.lr_scheduler_configs
    names = set(metrics)
    return [each for each in configs if isinstance(each.scheduler, ReduceLROnPlateau) and each.monitor in names]


def step_plateau_schedulers(trainer: Trainer, values: Mapping[str, Tensor]) -> None:
    """Step them by the metrics of a validation that has just ended, if a training was due to make it."""
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    if not fitting or not validation_is_due(trainer):
        return
    for config in plateau_configs(trainer, values.keys()):
        if (trainer.current_epoch + 1) % config.frequency == 0:
            config.scheduler.step(values[config.monitor].item())
