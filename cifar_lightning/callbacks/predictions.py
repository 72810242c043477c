"""Predictions as a printed table, a CSV file and a plot."""

import csv
import os
import time
from collections import Counter
from math import isnan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from cifar_lightning.analysis.mc_dropout import MCPrediction, entropy
from cifar_lightning.analysis.plots import draw_images
from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.callbacks.ways_to_predict import class_names, is_classified
from cifar_lightning.data.image_files import FileBatch
from cifar_lightning.training.datamodule import CIFAR10DataModule

SHOWN = 25  # rows on the screen, and images in the picture
COLUMNS = ("path", "label", "class", "probability", "top 3", "MC spread", "entropy")


class PredictionTable(Callback):
    """In `predict`, write `predictions.csv` and `predictions.png`, print the first rows, and report skipped files.

    A row has the image's path (or its index in the test set), its label if known, the predicted class and its
    probability, the three most probable classes, the standard deviation of the probability over Monte-Carlo passes,
    and the entropy of the probabilities in nats. Memory does not grow with the number of images. With several devices,
    each rank writes the rows of its share, and the first rank plots and prints its own.

    Args:
        evaluation: The options that choose the way to predict; None for the module's own probabilities.
    """

    def __init__(self, evaluation: EvaluationReport | None = None) -> None:
        self._ways = evaluation.ways if evaluation else None
        self.broken: list[tuple[str, str]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table.

        Raises:
            ValueError: If the module does not say how to predict a batch of images and labels.
        """
        ours = isinstance(trainer.datamodule, CIFAR10DataModule)  # type: ignore[attr-defined]
        if ours and not is_overridden("predict_step", pl_module, LightningModule):
            raise ValueError(
                f"{type(pl_module).__name__} can't predict: expected a predict_step that takes (images, labels) and "
                "returns probabilities (N, K), got none"
            )
        suffix = "" if trainer.world_size == 1 else f"_{trainer.global_rank}"
        self._folder = run_folder(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(os.devnull)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"predictions{suffix}.csv"
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        self._rows: list[list[str]] = []
        self._drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        self._conversions: Counter[str] = Counter()
        self._count, self._start = 0, time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Write the rows of a batch."""
        if not is_classified(outputs):
            raise ValueError(
                f"wrong output of {type(pl_module).__name__}: expected a predict_step that returns probabilities or "
                f"logits (N, K), got {type(outputs).__name__}"
            )
        images, *labelled = [batch] if isinstance(batch, Tensor) else batch
        outputs = _as_probabilities(outputs)
        prediction = self._ways.predict(pl_module, images, outputs) if self._ways else outputs
        probabilities = prediction.mean if isinstance(prediction, MCPrediction) else prediction
        std = prediction.std if isinstance(prediction, MCPrediction) else torch.full_like(probabilities, torch.nan)
        classes = class_names(trainer, pl_module, probabilities.shape[1])
        if isinstance(batch, FileBatch):
            paths, labels = batch.paths, [""] * len(batch.paths)
            self.broken += batch.broken
            self._conversions.update(batch.conversions)
        else:
            first, step = self._count * trainer.world_size + trainer.global_rank, trainer.world_size
            paths = [str(first + i * step) for i in range(len(images))]
            labels = [classes[label] for label in labelled[0].tolist()] if labelled else [""] * len(paths)
        columns = [column.tolist() for column in (probabilities, std, entropy(probabilities))]
        for path, label, row, spread, uncertainty in zip(paths, labels, *columns, strict=True):
            top = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:3]
            best, three = top[0], " ".join(f"{classes[k]}:{row[k]:.4f}" for k in top)
            sampled = "" if isnan(spread[best]) else f"{spread[best]:.4f}"
            cells = [path, label, classes[best], f"{row[best]:.4f}", three, sampled, f"{uncertainty:.4f}"]
            self._writer.writerow(cells)
            if len(self._rows) < SHOWN:
                self._rows.append(cells)
        if (room := SHOWN - sum(len(part[0]) for part in self._drawn)) > 0 and len(paths):
            self._drawn.append((images[:room], probabilities[:room], std[:room]))
        self._count += len(paths)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the table, plot, and report."""
        self._file.close()
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._start
        console = get_console()
        console.print(_table(self._rows))
        if self._count > len(self._rows):
            console.print(f"... and {self._count - len(self._rows):,} more in the file")
        if self._drawn and is_writer(trainer):
            data = trainer.datamodule  # type: ignore[attr-defined]
            source = "image files" if getattr(data, "files", None) else f"images of {data_set_name(trainer)}"
            self._draw(class_names(trainer, pl_module, self._drawn[0][1].shape[1]), source)
        for what, count in self._conversions.items():
            console.print(f"{count:,} {'images were' if count > 1 else 'image was'} {what}")
        for path, reason in self.broken:
            console.print(f"skipped {path}: {reason}", markup=False)
        console.print(f"{self._count:,} images, {self._count / seconds:,.0f} per second")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            console.print("a dry run writes no file")
            return
        names = [Path(self._file.name).name, *["predictions.png"] * bool(self._drawn)]
        say_where(self._folder, names, f"look at {self._folder / names[-1]}")

    def _draw(self, classes: list[str], source: str) -> None:
        images, probabilities, std = (torch.cat(parts) for parts in zip(*self._drawn, strict=True))
        draw_images(
            images,
            probabilities,
            [f"image {row[0]}" if row[1] else Path(row[0]).name for row in self._rows],
            classes,
            self._folder / "predictions.png",
            f"the first {len(images)} of {self._count:,} {source}",
            None if std.isnan().any() else std,
            [classes.index(row[1]) if row[1] else None for row in self._rows],
        )


def _as_probabilities(outputs: Tensor) -> Tensor:
    """Return probabilities unchanged, and convert logits, which modules other than ours may return."""
    gaps = (outputs.float().sum(1) - 1).abs()  # in half precision, sums are only roughly 1
    are_probabilities = bool((outputs >= 0).all() and (gaps < 0.05).all())
    return outputs if are_probabilities else outputs.softmax(1)


def _table(rows: list[list[str]]) -> Table:
    """A table of the rows, shortened to fit 80 columns."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    widths = {"image": None, "class": 10, "p": 6, "next": None, "spread": 6, "entropy": 7}
    for name, width in widths.items():
        table.add_column(name, no_wrap=True, min_width=width)
    for path, label, best, probability, top, spread, uncertainty in rows:
        following = (part.split(":") for part in top.split()[1:])
        name = Path(path).name + (f" ({label})" if label else "")
        next_best = ", ".join(f"{which} {float(p):.2f}" for which, p in following)
        table.add_row(name, best, probability, next_best, spread, uncertainty)
    return table
