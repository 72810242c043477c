"""Plots a schedule without training."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from cifar_lightning.analysis.plots import draw_schedule
from cifar_lightning.callbacks.run_folder import is_writer, run_folder, say_where
from cifar_lightning.optim.class_paths import build_schedule, schedule_component
from cifar_lightning.optim.schedule import simulate_steps
from cifar_lightning.style import plain
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.length import PlannedStep, planned_steps
from cifar_lightning.training.lightning_internals import stop_before_training
from cifar_lightning.training.messages import say
from cifar_lightning.training.run_events import show_picture


class SchedulePlot(Callback):
    """Plots a run's learning rate, and its momentum if that changes, as `schedule.png`, and stops before training.

    A schedule that follows a metric is plotted as if the metric never improved.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot and stop.

        Raises:
            ValueError: If the length of the run is unknown.
        """
        steps = planned_steps(trainer)
        if not steps:
            raise ValueError(
                "cannot plot a schedule of unknown length: expected at least one optimizer step, from "
                "--trainer.max_epochs or --trainer.max_steps and a data loader with a length; got max_epochs "
                f"{trainer.max_epochs}, max_steps {trainer.max_steps}"
            )
        folder = run_folder(trainer)
        rates, momenta = simulate(pl_module, steps)
        if is_writer(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            epochs = [0.0, *(step.epoch + step.batch / step.batches for step in steps)]  # before each, and at the end
            title = f"{_name(pl_module)}: {len(steps):,} steps in {plain(epochs[-1])} epochs"
            draw_schedule(rates, momenta, epochs, folder / "schedule.png", title)
            show_picture(trainer, folder / "schedule.png")
            first, most, last = rates[0], max(rates), rates[-1]
            say(f"{len(steps):,} steps: learning rate {first:.3g} at first, {most:.3g} at the peak, {last:.3g} at last")
            say_where(folder, ["schedule.png"], "cifar-lightning fit, with the same options")
        stop_before_training(trainer)


def simulate(pl_module: LightningModule, steps: Iterable[PlannedStep]) -> tuple[list[float], list[float]]:
    """Learning rate and momentum of each step, from an optimizer and a schedule made for the purpose.

    Raises:
        ValueError: If the module does not configure one optimizer.
    """
    optimizer, configs = _configure(pl_module)
    due = [(config["scheduler"], partial(_is_due, config)) for config in configs]
    return simulate_steps(optimizer, due, steps)


def _is_due(config: Mapping[str, Any], step: PlannedStep) -> bool:
    """Whether Lightning steps a scheduler after an optimizer step; it counts batches within their epoch."""
    by_epoch = config.get("interval", "epoch") == "epoch"
    count = step.epoch + 1 if by_epoch else step.batch
    return (step.batch == step.batches or not by_epoch) and bool(count % config.get("frequency", 1) == 0)


def _configure(pl_module: LightningModule) -> tuple[Optimizer, list[Mapping[str, Any]]]:
    """The optimizer, and its schedulers as Lightning's dictionaries, from any form that Lightning documents."""
    configured: Any = pl_module.configure_optimizers()
    schedulers: list[Any] = []
    match configured:
        case [[optimizer], [*schedulers]]:
            pass
        case {"optimizer": optimizer, "lr_scheduler": one} | [{"optimizer": optimizer, "lr_scheduler": one}]:
            schedulers = [one]
        case {"optimizer": optimizer} | [{"optimizer": optimizer}] | [optimizer] | optimizer:
            pass
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            "no schedule to plot: expected configure_optimizers to return one optimizer, with or without schedulers, "
            f"got {configured!r}"
        )
    return optimizer, [item if isinstance(item, Mapping) else {"scheduler": item} for item in schedulers]


def _name(pl_module: LightningModule) -> str:
    """The schedule's name, which is only known for an `MLPClassifier`."""
    if not isinstance(pl_module, MLPClassifier):
        return "Schedule"
    return repr(build_schedule(schedule_component(pl_module.hparams["schedule"])))
