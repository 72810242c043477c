"""Evaluates a trained network: compares the ways to predict in a table and in plots."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from cifar_lightning.analysis.mc_dropout import MCPrediction
from cifar_lightning.analysis.metrics import MutualInformation, Reliability, evaluation_metrics
from cifar_lightning.analysis.plots import draw_confusion_matrix, draw_images, draw_reliability
from cifar_lightning.callbacks.calibration import Calibration, gather, save_calibrated
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.callbacks.ways_to_predict import Way, WaysToPredict, class_names, is_classified
from cifar_lightning.files import replacing
from cifar_lightning.training.run_events import add_to_row, show_picture

MOST_UNCERTAIN = 25
COLUMNS = {
    "accuracy": "accuracy",
    "top3_accuracy": "top 3",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "aurc": "AURC",
    "entropy": "entropy",
    "mutual_information": "MI",
}


class EvaluationReport(Callback):
    """In `validate` and `test`, evaluate each way to predict from the logits that the module's step returns.

    Logs the metrics, prints them as a table, and writes `evaluation.csv`, `reliability.png`, `confusion_matrix.png`
    and, for Monte-Carlo predictions, `most_uncertain.png`.

    Args:
        mc_samples: Number of Monte-Carlo dropout passes in `validate`, `test` or `predict`; 0 for none.
        ensemble: Checkpoints whose probabilities are averaged with the network's in `validate`, `test` or `predict`.
        tta_flip: Whether to average predictions over each image and its mirror image (test-time augmentation).
        tta_shift: Largest shift in pixels for test-time augmentation, which averages over (2 n + 1)² views; 0 for none.
        calibrate: In `validate`, whether to fit a temperature and save it in a new checkpoint.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(
        self,
        mc_samples: int = 0,
        ensemble: list[str] | None = None,
        tta_flip: bool = False,
        tta_shift: int = 0,
        calibrate: bool = False,
    ) -> None:
        self.ways, self.calibrate = WaysToPredict(mc_samples, ensemble or [], tta_flip, tta_shift), calibrate

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a new evaluation."""
        if stage != "fit":
            self.ways.prepare(pl_module)
        self._metrics: dict[Way, MetricCollection] = {}
        self._reliability: dict[Way, Reliability] = {}
        self._confusion: MulticlassConfusionMatrix | None = None
        self._information = MutualInformation()
        self._uncertain: dict[str, Tensor] = {}
        self._calibration = Calibration()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the ensemble, unless this is a validation during training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.ways.check_members(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the ensemble."""
        self.ways.check_members(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the ensemble."""
        self.ways.check_members(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Add a batch, unless this is a validation during training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            if self.calibrate:
                self._calibration.add(outputs, batch[1])
            self.on_test_batch_end(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Add a batch."""
        if not is_classified(outputs):
            if self.ways.mc_samples:
                raise ValueError(
                    f"cannot compare Monte-Carlo predictions: expected the steps of {type(pl_module).__name__} to "
                    "return logits (N, K), got something else"
                )
            return  # only the module's own metrics are reported
        images, labels = batch
        predictions = self.ways.predict_every_way(pl_module, images, outputs.softmax(-1))
        for way, prediction in predictions.items():
            probabilities = prediction.mean if isinstance(prediction, MCPrediction) else prediction
            self._measure(way, probabilities, labels)
            if isinstance(prediction, MCPrediction):
                self._information.to(images.device).update(probabilities, prediction.expected_entropy)
                self._keep_most_uncertain(
                    {
                        "information": prediction.mutual_information,
                        "images": images,
                        "labels": labels,
                        "mean": prediction.mean,
                        "std": prediction.std,
                    }
                )
        assert self._confusion is not None, "there is a way to predict"
        self._confusion.update(outputs, labels)

    def _measure(self, way: Way, probabilities: Tensor, labels: Tensor) -> None:
        num_classes, device = probabilities.shape[1], probabilities.device
        if way not in self._metrics:
            self._metrics[way] = evaluation_metrics(num_classes).to(device)
            self._reliability[way] = Reliability().to(device)
        if self._confusion is None:
            self._confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
        self._metrics[way].update(probabilities, labels)
        self._reliability[way].update(probabilities, labels)

    def _keep_most_uncertain(self, batch: dict[str, Tensor]) -> None:
        both = {name: torch.cat([self._uncertain.get(name, new[:0]), new]) for name, new in batch.items()}
        order = both["information"].argsort(descending=True, stable=True)[:MOST_UNCERTAIN]
        self._uncertain = {name: values[order] for name, values in both.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate and report, unless this is a validation during training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            if self.calibrate:
                value, probabilities, labels = self._calibration.fit(pl_module)
                pl_module.log("temperature", value)
                self._measure(Way("calibrated_", f"calibrated, T = {value:.3f}"), probabilities, labels)
            self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self._confusion is None:  # no step has returned logits
            return
        rows = {way: {k: v.item() for k, v in metrics.compute().items()} for way, metrics in self._metrics.items()}
        curves = {way: metric.compute() for way, metric in self._reliability.items()}
        confusion = self._confusion.compute()
        if self._uncertain:
            information = self._information.compute().item()
            next(row for way, row in rows.items() if way.key == "mc_")["mutual_information"] = information
            if trainer.world_size > 1:
                gathered = {name: gather(pl_module, values) for name, values in self._uncertain.items()}
                self._uncertain = {}
                self._keep_most_uncertain(gathered)
        for way, row in rows.items():
            names = row if way.key else row.keys() - {"accuracy", "top3_accuracy"}  # which the module itself logs
            pl_module.log_dict({f"{split}_{way.key}{name}": row[name] for name in names}, sync_dist=True)
        folder = run_folder(trainer)
        if trainer.sanity_checking or not is_writer(trainer):
            return
        folder.mkdir(parents=True, exist_ok=True)
        data_set = data_set_name(trainer)
        title = f"{folder.parent.name} on {data_set}, {split} split"
        count = int(confusion.sum())
        get_console().print(_table(rows, f"{title}, {count:,} images"))
        _write_csv(rows, data_set, count, folder / "evaluation.csv")
        classes = class_names(trainer, pl_module, len(confusion))
        draw_reliability({way.label: curve for way, curve in curves.items()}, folder / "reliability.png", title)
        label = next(iter(rows)).label
        draw_confusion_matrix(confusion, classes, folder / "confusion_matrix.png", f"{title}, {label}")
        if self._uncertain:
            kept = self._uncertain
            captions = [f"MI {information:.2f} nats" for information in kept["information"].tolist()]
            draw_images(
                kept["images"],
                kept["mean"],
                captions,
                classes,
                folder / "most_uncertain.png",
                f"{title}: highest mutual information (MI)",
                kept["std"],
                kept["labels"].tolist(),
            )
        plain = next(iter(rows.values()))
        self._finish(trainer, pl_module, split, {"loss": plain["nll"], "accuracy": plain["accuracy"]})

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: str, measures: dict[str, float]) -> None:
        """Print what was written and a next step; add test results to the run's row in TensorBoard."""
        folder, checkpoint = run_folder(trainer), trainer.ckpt_path
        names = ["evaluation.csv", "reliability.png", "confusion_matrix.png"]
        names += ["most_uncertain.png"] * bool(self._uncertain)
        for name in names[1:]:
            show_picture(trainer, folder / name)
        if self.calibrate and split == "val" and (calibrated := save_calibrated(trainer, pl_module, folder)):
            names.append(str(calibrated.relative_to(folder)))
            checkpoint = calibrated
        then = f"cifar-lightning test --ckpt_path {checkpoint}"
        if split == "test" and checkpoint:
            add_to_row(Path(checkpoint).parent.parent, {f"test/{name}": value for name, value in measures.items()})
            then = f"cifar-lightning predict --ckpt_path {checkpoint} --data.images FILE"
        say_where(folder, names, then if checkpoint else "")


def _table(rows: dict[Way, dict[str, float]], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("prediction", no_wrap=True)
    left_to_the_file = ("top3_accuracy", "entropy")  # the screen may have no more than 80 columns
    columns = {name: column for name, column in COLUMNS.items() if name not in left_to_the_file}
    for name in columns.values():
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    for way, row in rows.items():
        cells = [f"{row[name]:.2%}" if "accuracy" in name else f"{row[name]:.4f}" for name in columns if name in row]
        table.add_row(way.label, *cells)
    return table


def _write_csv(rows: dict[Way, dict[str, float]], data_set: str, count: int, path: Path) -> None:
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prediction", "data_set", "images", *COLUMNS])
        for way, row in rows.items():
            writer.writerow([way.label, data_set, count, *(row.get(name, "") for name in COLUMNS)])
