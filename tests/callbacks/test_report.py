import csv
from math import isnan, nan
from pathlib import Path

import pytest
import torch
from conftest import ACCELERATOR, SMALL
from lightning.pytorch import LightningModule, Trainer
from rich import get_console

from cifar_lightning import CIFAR10DataModule, MLPClassifier, RunReport
from cifar_lightning.callbacks.report import _table

FLAGS = [*SMALL, "--model.hidden_sizes=1x8"]


@pytest.mark.usefixtures("undrawn")
def test_an_epoch_without_a_validation_shows_none(run):
    said = run("fit", *FLAGS, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2")
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert ["val_loss" in line for line in lines] == [False, True, False]
    assert "last epoch with a validation │ 2" in " ".join(said.split())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore")
def test_a_training_whose_validation_diverges_has_no_best_epoch(capsys):
    row = {"seconds": 1.0, "lr": 0.1, "val_loss": nan, "val_accuracy": 0.1}
    get_console().print(_table([row | {"epoch": 1.0}, row | {"epoch": 2.0}], "CIFAR-10", Path("runs/a")))
    said = " ".join(capsys.readouterr().out.split())
    assert "none: the loss was never a number" in said
    assert "best epoch, by validation loss │ 1" not in said


@pytest.mark.parametrize(("losses", "titles"), [((2.0, 1.5), ["2"]), ((1.5, 2.0), ["1", "2"])])
def test_an_epoch_that_is_both_the_best_and_the_last_is_shown_once(losses, titles, capsys):
    rows = [{"epoch": i, "seconds": 1.0, "val_loss": loss} for i, loss in enumerate(losses, start=1)]
    get_console().print(_table(rows, "CIFAR-10", Path("runs/a")))
    shown = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert shown[: len(titles)] == titles
    assert len([line for line in shown if line.isdigit()]) == len(titles)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("interval", ["0.25", "1"])  # the second is a number of batches
def test_a_run_reports_the_validation_that_best_ckpt_is_of(run, interval):
    flags = [*FLAGS, "--model.optimizer=SGD", "--model.lr=0.3", "--trainer.max_epochs=4"]
    said = run("fit", *flags, f"--trainer.val_check_interval={interval}")
    with next(Path("runs").rglob("metrics.csv")).open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    each = len(losses) // 4
    assert min(losses) < min(losses[each - 1 :: each])  # or the last ones of each epoch would do
    best = torch.load(next(Path("runs").rglob("best.ckpt")), weights_only=True)
    (kept,) = (state for name, state in best["callbacks"].items() if name.startswith("BestCheckpoint"))
    assert float(kept["best_model_score"]) == pytest.approx(min(losses))
    shown = [f"best epoch, by validation loss │ {best['epoch'] + 1}", f"validation loss │ {min(losses):.4f}"]
    assert " │ │ ".join(shown) in " ".join(said.split())


def test_a_training_that_stops_early_says_why(run):
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"]
    said = run("fit", *FLAGS, *stopping, "--trainer.callbacks.patience=2", "--trainer.max_epochs=50", "--model.lr=0.03")
    assert "stopped early: Monitored metric val_loss did not improve in the last 2 records. Best score: " in said
    assert "Signaling" not in said


@pytest.mark.usefixtures("undrawn")
def test_without_any_validation_there_is_a_table_all_the_same(run):
    said = run("fit", *FLAGS, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0")
    assert "written to" in said
    assert "best epoch" not in said
    assert list(Path("runs").rglob("last.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_the_curves_of_a_fit_are_drawn_in_a_line():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20, batch_size=8)  # 5 steps an epoch
    report = RunReport()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(**ACCELERATOR, max_epochs=2, callbacks=[report], default_root_dir="runs", **quiet)
    trainer.fit(MLPClassifier(hidden_sizes=[4], optimizer="SGD", schedule="OneCycle", lr=0.1), data)
    loss, _, rate = report.plot().axes
    assert [len(line.get_xdata()) for line in loss.lines[:2]] == [2, 2]
    assert len(rate.lines[0].get_xdata()) == 11  # the rate of each step, and the next one
    assert next(Path("runs").glob("*.png")).name == "learning_curves.png"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore")
def test_a_module_without_an_optimizer_has_rows():
    class Unlearning(LightningModule):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", torch.tensor(1.0), on_epoch=True, on_step=False)

        def configure_optimizers(self):
            return None

    report = RunReport()
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20)
    Trainer(max_epochs=1, logger=False, callbacks=[report], enable_checkpointing=False).fit(Unlearning(), data)
    assert isnan(report.rows[0]["lr"])


@pytest.mark.parametrize(
    ("losses", "shown"),
    [
        ([], "RunReport(0 epochs)"),
        ([2.5], "RunReport(1 epoch, lowest validation loss 2.5 in epoch 1)"),
        ([2.5, 1.25, 1.5], "RunReport(3 epochs, lowest validation loss 1.25 in epoch 2)"),
    ],
)
def test_a_report_is_shown_in_one_line(losses, shown):
    report = RunReport()
    report.rows = [{"epoch": float(index), "val_loss": loss} for index, loss in enumerate(losses, 1)]
    assert repr(report) == shown
