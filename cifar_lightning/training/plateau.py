"""Steps schedulers that follow a validation metric before the validation's checkpoint is written.

Lightning would step them after that, and not at all in a resumed epoch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cifar_lightning.training.lightning_internals import validation_is_due


def plateau_configs(trainer: Trainer, metrics: Iterable[object]) -> list[Any]:
    """Lightning's configurations of the schedulers that follow one of these metrics."""
    configs: list[Any] = trainer.lr_scheduler_configs
    names = set(metrics)
    return [each for each in configs if isinstance(each.scheduler, ReduceLROnPlateau) and each.monitor in names]


def step_plateau_schedulers(trainer: Trainer, values: Mapping[str, Tensor]) -> None:
    """Step them with the metrics of a validation that has just ended, if it was scheduled as part of training."""
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    if not fitting or not validation_is_due(trainer):
        return
    for config in plateau_configs(trainer, values.keys()):
        if (trainer.current_epoch + 1) % config.frequency == 0:
            config.scheduler.step(values[config.monitor].item())
