"""Calibration: fits a temperature to the logits of a validation and saves it in a copy of the checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cifar_lightning.nn.temperature import Temperature
from cifar_lightning.training.whole_checkpoints import WholeCheckpoints


class Calibration:
    """Collects the logits of a validation, and fits the module's temperature to them."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels (B,)."""
        self._batches.append((logits, labels))

    def fit(self, pl_module: LightningModule) -> tuple[float, Tensor, Tensor]:
        """Set the module's temperature.

        Returns:
            The temperature, and this rank's calibrated probabilities, (N, K), with their labels, (N,).
        """
        logits, labels = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        self._batches.clear()
        temperature = pl_module.temperature
        assert isinstance(temperature, Temperature), "the classifier has one"
        raw = logits * temperature.value  # undo the division by the previous temperature
        value = temperature.fit(gather(pl_module, raw), gather(pl_module, labels))
        return value, temperature(raw).softmax(-1), labels


def save_calibrated(trainer: Trainer, pl_module: LightningModule, folder: Path) -> Path | None:
    """Write a copy of the evaluated checkpoint with the module's temperature; None if no checkpoint was evaluated."""
    if trainer.ckpt_path is None:
        return None
    path = folder / "checkpoints" / "calibrated.ckpt"
    checkpoint = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True)
    temperature: Any = pl_module.temperature
    checkpoint["state_dict"]["temperature.value"] = temperature.value.cpu()
    WholeCheckpoints().save_checkpoint(checkpoint, path)
    return path


def gather(pl_module: LightningModule, values: Tensor) -> Tensor:
    """Gather the rows of `values`, (N, ...), from all ranks; N may differ between ranks."""
    if pl_module.trainer.world_size == 1:
        return values
    parts: list[Any] = [None] * pl_module.trainer.world_size
    torch.distributed.all_gather_object(parts, values.cpu())
    return torch.cat(parts).to(values.device)
