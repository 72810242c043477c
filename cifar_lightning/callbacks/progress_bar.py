"""The progress bar of a run."""

import time
from collections.abc import Sequence
from math import isfinite
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from cifar_lightning.callbacks.progress_line import Clock, ProgressLine
from cifar_lightning.training.lightning_internals import batch_index, finished_epochs

Counts = Sequence[float]


class RunProgressBar(ProgressBar):
    """One line with the epoch, its progress, the time left and the latest metrics.

    Epochs are counted from 1, as in the report. Validation metrics are left to the report, which prints one line per
    epoch above this one, or below it in a notebook. The line disappears when training ends.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import RunProgressBar
        >>> trainer = Trainer(max_epochs=5, logger=False, callbacks=[RunProgressBar()])
    """

    def __init__(self) -> None:
        super().__init__()
        self._line, self._clock, self._is_enabled = ProgressLine(), Clock(), True
        self._done, self._images, self._start = 0, 0, 0.0  # of an evaluation: batches, images, start time

    def enable(self) -> None:
        """Show the bar."""
        self._is_enabled = True

    def disable(self) -> None:
        """Show no bar."""
        self._is_enabled = False
        self._line.stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        print(*args, **kwargs)  # `sys.stdout` handles the line

    # --------------------------------------------------------------------------------------------------- a training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's number: its first step may be long."""
        self._line.show(_present_epoch(trainer), 0, self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches done; there may be several per call."""
        done = batch_index(trainer) + 1
        left = self._clock.seconds_left(trainer.fit_loop.total_batch_idx + 1, _total_batches(trainer))
        if self._line.is_due:
            metrics = self.get_metrics(trainer, pl_module).items()
            figures = [f"{_short(name)} {value}" for name, value in metrics if not name.startswith("val_")]
            self._line.show(_present_epoch(trainer), done, self.total_train_batches, left, figures)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Erase the bar."""
        self._line.stop()

    # ------------------------------------------------------------------------------------------------ an evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; a validation during training uses the training's line."""
        self._begin_evaluation(begins_line=not (trainer.sanity_checking or trainer.state.fn == "fit"))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin_evaluation()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin_evaluation()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count a batch."""
        what = f"{_present_epoch(trainer)}, validation" if trainer.state.fn == "fit" else "validation"
        self._count(what, batch, trainer.num_val_batches)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count a batch."""
        self._count("test", batch, trainer.num_test_batches)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count a batch."""
        self._count("prediction", batch, trainer.num_predict_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Erase the bar, unless it belongs to training."""
        if trainer.state.fn != "fit":
            self._line.stop()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Erase the bar."""
        self._line.stop()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Erase the bar."""
        self._line.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Erase the bar."""
        self._line.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Erase the bar."""
        self._line.stop()

    # ------------------------------------------------------------------------------------------------------- others

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics as text: no version, and small learning rates in full."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
        }

    def _begin(self) -> None:
        self._clock = Clock()
        if self._is_enabled:
            self._line.start()

    def _begin_evaluation(self, begins_line: bool = True) -> None:
        self._done, self._images, self._start = 0, 0, time.monotonic()
        if begins_line:
            self._begin()

    def _count(self, what: str, batch: Any, totals: int | float | Counts) -> None:
        """Count a batch of an evaluation."""
        self._done += 1
        images = batch[0] if isinstance(batch, Sequence) and batch else batch
        self._images += len(images) if isinstance(images, Tensor) else 0
        total = sum(totals) if isinstance(totals, Sequence) else totals
        if self._line.is_due:
            seconds = time.monotonic() - self._start
            left = (total - self._done) * seconds / self._done if isfinite(total) else None
            figures = [f"{self._images / seconds:,.0f} images per second"] if self._images else []
            self._line.show(what, self._done, total, left, figures)


def epoch_label(number: int, trainer: Trainer) -> str:
    """An epoch's number, from 1, and the maximum: "epoch  3/15"."""
    last = trainer.max_epochs
    return f"epoch {number}" if last in (None, -1) else f"epoch {number:{len(str(last))}}/{last}"


def _present_epoch(trainer: Trainer) -> str:
    return epoch_label(finished_epochs(trainer) + 1, trainer)


def _total_batches(trainer: Trainer) -> float | None:
    """Number of batches of the whole run; None if it can't be known."""
    totals = []
    if trainer.max_epochs not in (None, -1):
        totals.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps != -1:
        totals.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return min(totals, default=None)


def _short(name: str) -> str:
    """A metric's name in the line."""
    return "loss" if name == "train_step_loss" else name
