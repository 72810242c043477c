"""A picture of a schedule, without training."""

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cifar_lightning.analysis.plots import draw_schedule
from cifar_lightning.callbacks.run_folder import is_writer, run_folder
from cifar_lightning.training.lightning_internals import count_optimizer_steps, stop_before_training


class SchedulePlot(Callback):
    """Before a training, draw its learning rate, and its momentum if that moves, as `schedule.png`; then stop.

    A schedule that goes by a metric is drawn as if the metric never improved.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and stop.

        Raises:
            ValueError: If the length of the training is not known.
        """
        total = count_optimizer_steps(trainer)
        if total is None or trainer.max_epochs in (None, -1):
            raise ValueError(
                "a schedule of unknown length can't be drawn: expected --trainer.max_epochs, received "
                f"{trainer.max_epochs}"
            )
        folder = run_folder(trainer)
        rates, momenta = simulate(pl_module, total, -(-total // trainer.max_epochs))
        if is_writer(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            draw_schedule(rates, momenta, total / trainer.max_epochs, folder / "schedule.png")
            console = get_console()
            first, most, last = rates[0], max(rates), rates[-1]
            console.print(f"{total:,} steps: rate {first:.3g} at first, {most:.3g} at most, {last:.3g} at last")
            console.print(f"the picture is {folder / 'schedule.png'}", soft_wrap=True)
        stop_before_training(trainer)


def simulate(pl_module: LightningModule, total: int, steps_per_epoch: int) -> tuple[list[float], list[float]]:
    """Rate and momentum of each of `total` steps, from an optimizer and a schedule made for the purpose.

    Raises:
        ValueError: If the module does not configure one optimizer.
    """
    optimizer, configs = _configure(pl_module)
    rates, momenta = [], []
    with warnings.catch_warnings():  # the optimizer makes no step here
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`")
        for step in range(1, total + 1):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            momenta.append(_momentum(optimizer))
            for config in configs:
                if config.get("interval", "epoch") == "step" or step % steps_per_epoch == 0:
                    _advance(config["scheduler"])
    return rates, momenta


def _configure(pl_module: LightningModule) -> tuple[Optimizer, list[Mapping[str, Any]]]:
    """One optimizer, and its schedulers as Lightning's dictionaries, from any form that Lightning documents."""
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
            "no schedule to draw: expected configure_optimizers to return one optimizer, with or without schedulers; "
            f"received {configured!r}"
        )
    return optimizer, [item if isinstance(item, Mapping) else {"scheduler": item} for item in schedulers]


def _advance(scheduler: Any) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(0.0)
    else:
        scheduler.step()


def _momentum(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
