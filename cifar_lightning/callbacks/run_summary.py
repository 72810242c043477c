"""A summary of a run, printed before training."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_lightning.callbacks.run_folder import data_set_name
from cifar_lightning.nn.description import describe_network
from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.messages import say
from cifar_lightning.training.stacked_classifier import StackedClassifier


class RunSummary(Callback):
    """Prints the network, the training settings and the data in two lines, plus a third for several devices.

    Lightning's own summary would have a single row for the whole network.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the summary, once the data module is set up and before other callbacks print."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        count = sum(parameter.numel() for parameter in pl_module.parameters())
        say(f"Network: {_describe_module(pl_module)}; {count:,} parameters")
        say(f"Training: {_describe_training(trainer, pl_module)}")
        if trainer.world_size > 1:
            say(f"Devices: {_describe_devices(trainer)}")


def _describe_module(module: LightningModule) -> str:
    """A short description of the network, or the module's name if it is not ours."""
    if isinstance(module, StackedClassifier):
        return f"{len(module.classifiers)} times {describe_network(module.classifiers[0].network)}"
    if isinstance(module, MLPClassifier) and isinstance(module.network, DeepMLP):  # a subclass may have another
        return describe_network(module.network)
    return type(module).__name__


def _describe_training(trainer: Trainer, module: LightningModule) -> str:
    """Optimizer, images and length, as far as they are known."""
    hparams: dict[str, Any] = dict(module.hparams)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    parts = []
    if isinstance(module, MLPClassifier):
        optimizer, schedule = (_short(hparams[name]) for name in ("optimizer", "schedule"))
        parts.append(f"{optimizer}, {schedule}, lr {hparams['lr']:g}")
        if changes := _describe_changes(hparams, getattr(data, "hparams", {})):
            parts.append(f"images {changes}")
    if (sizes := getattr(data, "split_sizes", None)) is not None:
        size = data.hparams["batch_size"]
        parts.append(f"{sizes[0]:,} images of {data_set_name(trainer)} in batches of {size}, {sizes[1]:,} to validate")
    if trainer.max_epochs not in (None, -1):
        parts.append(f"{trainer.max_epochs} epoch{'s' * (trainer.max_epochs != 1)} at most")
    return "; ".join(parts)


def _describe_changes(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The augmentation of training images in short; "" for none."""
    changes = ["mirrored"] * bool(data.get("flip"))
    if shift := data.get("shift"):
        changes.append(f"shifted by up to {shift} pixels")
    if mixup := model.get("mixup"):
        changes.append(f"mixed, Beta({mixup:g}, {mixup:g})")
    if cutmix := model.get("cutmix"):
        changes.append(f"boxes replaced, Beta({cutmix:g}, {cutmix:g})")
    return ", ".join(changes)


def _describe_devices(trainer: Trainer) -> str:
    """How several devices share a step, as far as it is known."""
    count, data = trainer.world_size, trainer.datamodule  # type: ignore[attr-defined]
    size = getattr(data, "device_batch_size", None)
    share = f", each with {size:,} of a step's {count * size:,} images" if size else ", each with its own batches"
    return f"{count}{share}; gradients are averaged, and the learning rate is not scaled"


def _short(component: Any) -> str:
    """The name of a stored optimizer or schedule."""
    return str(component["class_path"] if isinstance(component, dict) else component).rpartition(".")[2]
