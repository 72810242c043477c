"""TensorBoard logs of a run: charts, images, and one row of hyperparameters with their results."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from cifar_lightning.training.messages import say

#: The results in a row of the HPARAMS tab. TensorBoard uses the list of the first run that it finds, so each run lists
#: all of them.
RESULTS = ("best/val_loss", "best/val_accuracy", "test/loss", "test/accuracy")
#: Charts of the CUSTOM SCALARS tab, which combines several curves of a run.
CHARTS = {
    "training and validation": {
        name: ["Multiline", [rf"^{name}/{split}$" for split in ("train", "val")]] for name in ("loss", "accuracy")
    }
}


class RunEvents(TensorBoardLogger):
    """Logs a run under tags that put training and validation side by side: "loss/train" and "loss/val".

    Hyperparameters are only added to the HPARAMS tab by `log_row`, once per training run and never in an evaluation.
    """

    def __init__(self, save_dir: str | Path, name: str, version: str) -> None:
        super().__init__(save_dir, name, version, default_hp_metric=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log the metrics that have a value."""
        super().log_metrics({tag_of(name): value for name, value in metrics.items() if value is not None}, step)

    @rank_zero_only
    def arrange_charts(self) -> None:
        """Tell TensorBoard which curves share a chart."""
        self.experiment.add_custom_scalars(CHARTS)

    @rank_zero_only
    def log_row(self, results: Mapping[str, float], step: int) -> None:
        """Log the hyperparameters with their results; results that come later are added by `add_to_row`."""
        row: dict[str, Any] = dict.fromkeys(RESULTS) | dict(results)
        self.log_hyperparams(dict(self.hparams), row, step)


def tag_of(name: str) -> str:
    """The tag of a metric, with the quantity first: "loss/val" for "val_loss"."""
    match = re.fullmatch(r"(train_step|train|val|test)_(.+)", name)
    return f"{match[2]}/{match[1]}" if match else name


def log_best(loggers: Iterable[Logger], best: Mapping[str, float], step: int) -> None:
    """Add a run's best epoch to TensorBoard's hyperparameter table.

    Args:
        loggers: The loggers; only TensorBoard's are used. Lightning's own has a single metric in its table.
        best: The epoch's metrics by name; {} if there was no validation.
        step: Number of optimizer steps.
    """
    for logger in loggers:
        if isinstance(logger, RunEvents):
            names = ("val_loss", "val_accuracy")
            logger.log_row({f"best/{name}": best[name] for name in names if name in best}, step)
        elif isinstance(logger, TensorBoardLogger) and "val_accuracy" in best:
            logger.log_metrics({"hp_metric": best["val_accuracy"]})


def add_to_row(run: Path, results: Mapping[str, float]) -> None:
    """Add results to the hyperparameter row of the run in folder `run`, if it has TensorBoard events."""
    if not any(run.glob("events.out.tfevents.*")):
        return
    if not os.access(run, os.W_OK):
        say(f"results are not added to TensorBoard's table: {run} is not writable", wrap=False)
        return
    from torch.utils.tensorboard import SummaryWriter  # late, as in Lightning: it takes a while

    writer = SummaryWriter(str(run), filename_suffix=".results")
    for tag, value in results.items():
        writer.add_scalar(tag, value)
    writer.close()


def show_picture(trainer: Trainer, path: Path) -> None:
    """Log a saved plot to the run's TensorBoard too."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")
