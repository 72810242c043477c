"""One of a sweep's trainings: its network, optimizer and schedule, its logs and its checkpoints."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor

from cifar_lightning.cli.run_folder import make_loggers
from cifar_lightning.errors import unknown_name
from cifar_lightning.optim.class_paths import build_optimizer, build_schedule
from cifar_lightning.optim.schedules import Constant
from cifar_lightning.training.classifier import MLPClassifier


@dataclass
class Copy:
    """One of the trainings.

    Args:
        values: What is varied, by name.
        seed: Of its weights and, unless the data has an order of its own, of its batches.
        model: The classifier that is trained.
        folder: Where its logs and checkpoints are written.
        loggers: What writes its logs.
        data_hparams: The data module's hyperparameters, for the checkpoints.
        rows: The epochs so far.
    """

    values: dict[str, float]
    seed: int
    model: MLPClassifier
    folder: Path
    loggers: list[Logger]
    data_hparams: dict[str, Any]
    rows: list[dict[str, float]] = field(default_factory=list)

    def prepare(self, steps: int | None) -> None:
        """Build optimizer and schedule, as a training of its own would."""
        hparams = self.model.hparams
        self.optimizer = build_optimizer(hparams["optimizer"], self.model.network.parameters(), hparams["lr"])
        self.schedule = build_schedule(hparams["schedule"])
        constant = self.schedule == Constant()
        self.scheduler = None if constant else self.schedule.build(self.optimizer, steps)

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Do what follows the optimizer's step."""
        self.model.network.constrain_()
        if self.scheduler is not None and self.schedule.interval == "step":
            self.scheduler.step()

    def end_epoch(self, row: dict[str, float]) -> None:
        """Step a schedule that goes by epochs, and keep the epoch's figures and weights."""
        row |= {"epoch": len(self.rows) + 1.0, "lr": self.lr}
        if self.scheduler is not None and self.schedule.monitor is not None:
            self.scheduler.step(row[self.schedule.monitor])  # type: ignore[arg-type]  # a ReduceLROnPlateau
        elif self.scheduler is not None and self.schedule.interval == "epoch":
            self.scheduler.step()
        self.rows.append(row)
        self.save("last")
        if row is self.best:
            self.save("best")

    @property
    def best(self) -> dict[str, float]:
        """The epoch of the lowest validation loss."""
        return min(self.rows, key=val_loss)

    def log(self, row: dict[str, float], steps: int) -> None:
        """Log figures after so many steps."""
        for logger in self.loggers:
            logger.log_metrics(row, steps - 1)

    def save(self, name: str) -> None:
        """Write a checkpoint that evaluations and `load_from_checkpoint` take."""
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(exist_ok=True)
        # (Views of the stack, of which torch.save would write all.)
        state = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in self.model.state_dict().items()
        }
        checkpoint = {
            "state_dict": state,
            "hyper_parameters": dict(self.model.hparams),
            "pytorch-lightning_version": lightning.__version__,
            "epoch": len(self.rows) - 1,
            "classes": self.model.classes,
            "datamodule_hyper_parameters": self.data_hparams,
        }
        torch.save(checkpoint, path)


def val_loss(row: Mapping[str, float]) -> float:
    """The validation loss of an epoch, for comparisons: infinite where it is no number."""
    return inf if isnan(row["val_loss"]) else row["val_loss"]


def make_copy(trainer: Trainer, module: MLPClassifier, values: dict[str, float], folder: Path) -> Copy:
    """Make the copy of a training that differs from it by some values.

    Args:
        trainer: Of the training.
        module: What it would train.
        values: What differs, by name, as in `Sweep`.
        folder: Where the copy's own folder is made.

    Raises:
        ValueError: For an unknown name, or a value that the classifier does not take.
    """
    hparams = _vary(module.hparams, values)
    seed = int(values.get("seed", os.environ.get("PL_GLOBAL_SEED", 0)))
    seed_everything(seed, verbose=False)
    model = MLPClassifier(**hparams)
    model.classes = module.classes
    model.standardize.load_state_dict(module.standardize.state_dict())
    model.to(trainer.strategy.root_device)
    place = folder / "_".join(f"{name}={value:.10g}" for name, value in values.items())
    place.mkdir(parents=True, exist_ok=True)
    loggers = make_loggers(place)
    for logger in loggers:
        logger.log_hyperparams(dict(model.hparams) | {"seed": seed})
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return Copy(values, seed, model, place, loggers, dict(data.hparams))


def _vary(given: Mapping[str, Any], values: dict[str, float]) -> dict[str, Any]:
    """The hyperparameters with some values replaced; a seed is none of them."""
    hparams: dict[str, Any] = copy.deepcopy(dict(given))
    known = ["lr", "seed", *(f"{g}.{a}" for g in ("optimizer", "schedule") for a in hparams[g]["init_args"])]
    for name, value in values.items():
        if name not in known:
            raise unknown_name("name to vary", name, known)
        group, _, argument = name.partition(".")
        if argument:
            hparams[group]["init_args"][argument] = value
        elif name == "lr":
            hparams["lr"] = value
    return hparams
