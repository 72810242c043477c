"""The progress bar of a run."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from cifar_lightning.training.lightning_internals import batch_index


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar with readable figures: no version, small rates in full."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics as text."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches that are done: there may be several in one call."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_index(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the bar now: `teardown` comes after the other callbacks have printed, and would draw it again below."""
        self.teardown(trainer, pl_module, "fit")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting images."""
        super().on_predict_start(trainer, pl_module)
        self._predicted, self._start = 0, time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Show the rate in images per second."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, *args, **kwargs)
        self._predicted += len(batch[0])
        if self.progress is not None and self.predict_progress_bar_id is not None:
            rate = self._predicted / (time.perf_counter() - self._start)
            self.progress.update(self.predict_progress_bar_id, description=f"Predicting, {rate:,.0f} images/s")
