"""What a sweep can't do, by the names of the options that ask for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, Timer
from lightning.pytorch.profilers import PassThroughProfiler

from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.callbacks.predictions import PredictionTable
from cifar_lightning.callbacks.pretrained import Pretrained
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.run_folder import RunFolder
from cifar_lightning.cli.save_config import SaveRunConfig
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.lightning_internals import detects_anomalies
from cifar_lightning.training.resume import ExactResume

#: Callbacks whose part a sweep plays itself, or that have none in it.
OWN_CALLBACKS = (
    BestCheckpoint,
    EvaluationReport,
    ExactResume,
    LastCheckpoint,
    ModelSummary,
    PredictionTable,
    Pretrained,
    ProgressBar,
    RunFolder,
    RunReport,
    SaveRunConfig,
)


def refuse_what_can_not_act(sweep: Callback, trainer: Trainer, folder: Path) -> None:
    """Refuse options of a training that a sweep would ignore.

    Args:
        sweep: The callback that sweeps.
        trainer: Of the training.
        folder: Where the sweep is written.

    Raises:
        ValueError: If there are any.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # first, since it sets several of the others
        raise ValueError(
            f"--trainer.fast_dev_run is not for a sweep: expected false, received {trainer.fast_dev_run}"  # type: ignore[attr-defined]
        )
    for name, value, expected in _asked_for(trainer):
        if value not in expected:
            raise ValueError(f"--{name} is not for a sweep: expected {expected[0]}, received {value}")
    if not trainer.checkpoint_callbacks:
        raise ValueError("--trainer.enable_checkpointing is not for a sweep: expected true, received false")
    places = [logger.log_dir if hasattr(logger, "log_dir") else None for logger in trainer.loggers]
    if not places or any(place is None or Path(place) != folder for place in places):
        received = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "false"
        raise ValueError(
            "--trainer.logger is not for a sweep: expected no such option, since each network has a metrics.csv and "
            f"events for TensorBoard in its own folder; received {received}"
        )
    ours = any(isinstance(callback, BestCheckpoint) for callback in trainer.checkpoint_callbacks)
    defaults = [] if ours else [ModelCheckpoint]  # Lightning's own, of a trainer that is given none
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback is not sweep and type(callback) not in defaults:
            _refuse_callback(callback)


def _asked_for(trainer: Trainer) -> Iterator[tuple[str, Any, list[Any]]]:
    """Names of options, each with its value and the values that a sweep can do with."""
    epochs = trainer.max_epochs
    pretrained = [each.checkpoint for each in trainer.callbacks if isinstance(each, Pretrained)]  # type: ignore[attr-defined]
    profiler = trainer.profiler  # type: ignore[attr-defined]
    yield "ckpt_path", trainer.ckpt_path, [None]
    yield "pretrained.checkpoint", next(iter(pretrained), None), [None]
    yield "trainer.gradient_clip_val", trainer.gradient_clip_val, [None, 0]
    yield "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, [1]
    yield "trainer.precision", trainer.precision, ["32-true"]
    yield "trainer.max_steps", trainer.max_steps, [-1]
    yield "trainer.max_epochs", epochs, [epochs if epochs is not None and epochs > 0 else 1]
    yield "trainer.limit_val_batches", trainer.limit_val_batches, [1.0]
    yield "trainer.val_check_interval", trainer.val_check_interval, [1.0]
    yield "trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, [1]
    yield "trainer.detect_anomaly", detects_anomalies(trainer), [False]
    yield (
        "trainer.profiler",
        None if isinstance(profiler, PassThroughProfiler) else type(profiler).__name__,
        [None],
    )


def _refuse_callback(callback: Callback) -> None:
    if isinstance(callback, Timer):
        raise ValueError("--trainer.max_time is not for a sweep: expected none, received a limit of time")
    if not isinstance(callback, OWN_CALLBACKS):
        raise ValueError(
            f"{type(callback).__name__} is not for a sweep, whose networks it would not see: expected no other "
            "callback (--trainer.callbacks null takes those of a config away), received it"
        )
