"""The signal plot: a network's activations and gradients by layer, at initialization and after each epoch."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.figure import Figure
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table

from cifar_lightning.analysis.plots import draw_signals
from cifar_lightning.analysis.signals import LayerSignal, measure_signals
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.files import replacing
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule
from cifar_lightning.training.lightning_internals import stop_before_training
from cifar_lightning.training.run_events import show_picture

#: An epoch (0 is the initialization), a layer (0 is the input, the last one the logits), and its `LayerSignal`.
Row = dict[str, float]
QUANTITIES = [field.name for field in fields(LayerSignal)]


class SignalPicture(Callback):
    """Measures the signals in an `MLPClassifier` on the first training images, with `measure_signals`.

    Writes `signals.csv` and `signals.png` into the run's folder. Training is bitwise the same as without it. The
    measurements are stored in checkpoints, so a resumed run plots all epochs.

    Args:
        every_n_epochs: Number of epochs between measurements; the initialization is always measured.
        num_images: Number of images to measure.
        stop: Whether to stop before training.

    Raises:
        ValueError: If a number is below 1, or the module or data module is not ours.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import SignalPicture
        >>> trainer = Trainer(max_epochs=5, logger=False, callbacks=[SignalPicture(every_n_epochs=5)])
    """

    def __init__(self, every_n_epochs: int = 1, num_images: int = 500, stop: bool = False) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("num_images", num_images)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every_n_epochs, self.num_images, self.stop = every_n_epochs, num_images, stop
        self.rows: list[Row] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the initialization, unless the run is resumed."""
        if trainer.ckpt_path is None:
            self.rows = []
            self._measure(trainer, pl_module, 0)
        elif self.stop:
            raise ValueError(
                f"SignalPicture with stop=True needs a new run: expected no --ckpt_path, got {str(trainer.ckpt_path)!r}"
            )
        if self.stop:
            stop_before_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after every `every_n_epochs` epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the signals."""
        folder = run_folder(trainer)
        if is_writer(trainer) and self.rows:
            data_set = data_set_name(trainer)
            draw_signals(self.rows, folder / "signals.png", f"Signals in {folder.parent.name} on {data_set}")
            show_picture(trainer, folder / "signals.png")
            if self.stop:
                get_console().print(_table(self.rows))
                say_where(folder, ["signals.csv", "signals.png"], "cifar-lightning fit, with the same options")

    def plot(self, title: str = "Signals") -> Figure:
        """Plot the measurements so far. A notebook displays the returned figure."""
        return draw_signals(self.rows, title=title)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Plot the measurements of an interrupted run."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved rows."""
        self.rows = state_dict["rows"]

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, MLPClassifier) or not isinstance(data, CIFAR10DataModule):
            raise ValueError(
                "SignalPicture needs an MLPClassifier and a CIFAR10DataModule (use measure_signals for other "
                f"networks), got {type(pl_module).__name__} and {type(data).__name__}"
            )
        folder = run_folder(trainer)
        if not is_writer(trainer):
            return
        images, labels = (part.to(pl_module.device) for part in data.first_training_images(self.num_images))
        network = pl_module.network
        layers = [network.input, *network.hidden, network.output]
        signals = measure_signals(network, layers, pl_module.standardize(images), labels)
        # An epoch that was cut short is measured again when a resumed run finishes it.
        before = [row for row in self.rows if row["epoch"] < epoch]
        measured = [{"epoch": epoch, "layer": layer, **asdict(signal)} for layer, signal in enumerate(signals)]
        self.rows = [*before, *measured]
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.rows, folder / "signals.csv")


def write_csv(rows: list[Row], path: Path) -> None:
    """Write a row for each layer of each epoch."""
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "layer", *QUANTITIES])
        writer.writeheader()
        writer.writerows(rows)


def _table(rows: list[Row]) -> Table:
    """The input, the first, the middle and the last hidden layer, and the logits."""
    table = Table("layer", *(quantity.replace("_", " ") for quantity in QUANTITIES), box=SIMPLE)
    last = len(rows) - 1
    for index in sorted({0, 1, last // 2, last - 1, last}):
        name = {0: "input", last: "logits"}.get(index, str(index))
        table.add_row(name, *(f"{rows[index][quantity]:.3g}" for quantity in QUANTITIES))
    return table
