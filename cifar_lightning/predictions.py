"""Predictions as a table on disk."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import print as rich_print


class PredictionTable(Callback):
    """Write `predictions.csv`: a row an image, with its index, label, predicted class and all probabilities.

    Beyond one device each rank writes its own rows, to `predictions_RANK.csv`.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the table."""
        name = "predictions.csv" if trainer.world_size == 1 else f"predictions_{trainer.global_rank}.csv"
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._index = trainer.global_rank

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of a batch: `outputs` are probabilities (B, K), `batch` is (images, labels (B,))."""
        if self._file.tell() == 0:
            self._writer.writerow(["index", "label", "class", *(f"p{k}" for k in range(outputs.shape[1]))])
        for label, probabilities in zip(batch[1].tolist(), outputs.tolist(), strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            self._writer.writerow([self._index, label, best, *(f"{p:.6f}" for p in probabilities)])
            self._index += trainer.world_size

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the table."""
        self._file.close()
        rich_print(f"predictions are in {self._path}")
