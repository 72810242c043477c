"""A run's files are in its folder, whatever its loggers are."""

from pathlib import Path

import pytest
from conftest import SMALL
from lightning.pytorch import Trainer

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.callbacks.report import RunReport

FLAGS = [*SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=1x8"]
CSV, TENSORBOARD = (f"{{class_path: {name}Logger, init_args: {{save_dir: logs}}}}" for name in ("CSV", "TensorBoard"))
WANDB = "{class_path: WandbLogger, init_args: {offline: true, save_dir: logs}}"
MLFLOW = "{class_path: MLFlowLogger, init_args: {tracking_uri: sqlite:///logs.db}}"


def file_names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("loggers", "package"),
    [
        pytest.param("false", "lightning", id="none"),
        pytest.param(CSV, "lightning", id="csv"),
        pytest.param(TENSORBOARD, "tensorboard", id="tensorboard"),
        pytest.param(f"[{CSV}, {TENSORBOARD}]", "tensorboard", id="two"),
        pytest.param(WANDB, "wandb", id="wandb", marks=pytest.mark.slow),
        pytest.param(MLFLOW, "mlflow", id="mlflow", marks=pytest.mark.slow),
    ],
)
def test_everything_is_in_the_runs_folder_whatever_the_loggers(run, monkeypatch, loggers, package):
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_SILENT", "true")
    extra = ["--trainer.callbacks+=SignalPicture", "--trainer.callbacks+=ModelCheckpoint"]
    extra += ["--trainer.callbacks.filename=mine", f"--trainer.logger={loggers}"]
    for count in (1, 2):
        run("fit", *FLAGS, *extra)
        folders = sorted(Path("runs/default").iterdir())
        assert len(folders) == count
        expected = {"config.yaml", "environment.json", "learning_curves.png", "signals.csv", "signals.png"}
        expected |= {f"checkpoints/{name}.ckpt" for name in ("best", "last", "mine")}
        assert file_names(folders[-1]) == expected
        assert {path.name for path in Path().iterdir()} <= {"runs", "logs", "logs.db", "mlruns", "lightning_logs"}
    said = run("validate", "--ckpt_path=last", f"--trainer.logger={loggers}", "--evaluation.calibrate=true")
    (evaluated,) = Path("runs/default").glob("validate_*")
    assert "Validation" in said or "val split" in said
    assert file_names(evaluated) == {
        "config.yaml",
        "environment.json",
        "evaluation.csv",
        "reliability.png",
        "confusion_matrix.png",
        "checkpoints/calibrated.ckpt",
    }
    assert str(folders[-1] / "checkpoints") in (evaluated / "config.yaml").read_text()
    run("predict", "--ckpt_path=last", f"--trainer.logger={loggers}")
    assert next(Path("runs/default").glob("predict_*/predictions.csv")).exists()


def test_without_the_command_line_they_are_where_the_logs_are():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20)
    options = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for _ in range(2):
        Trainer(callbacks=[RunReport()], **options).fit(MLPClassifier(hidden_sizes="1x8"), data)
    assert len(list(Path("lightning_logs").glob("version_*/learning_curves.png"))) == 2
    Trainer(callbacks=[RunReport()], logger=False, default_root_dir="here", **options).fit(
        MLPClassifier(hidden_sizes="1x8"), data
    )
    assert Path("here/learning_curves.png").exists()
