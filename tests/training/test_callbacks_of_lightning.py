"""Every callback that Lightning ships acts in a training of ours, or is refused."""

import math
from datetime import timedelta
from pathlib import Path

import lightning.pytorch.callbacks as callbacks
import pytest
import torch
from conftest import SMALL
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.training.checks import UNSUITABLE_CALLBACKS


def fit(callback, schedule="OneCycle", **options):
    """A trainer and a network after three epochs of eight batches."""
    torch.manual_seed(0)
    model = MLPClassifier(hidden_sizes="1x8", optimizer="SGD", schedule=schedule, lr=0.05)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=32)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": CSVLogger("logs"),
            "log_every_n_steps": 1,
            "callbacks": [callback],
        }
        | options
    )
    trainer.fit(model, data)
    return trainer, model


def logged(trainer):
    return Path(trainer.log_dir, "metrics.csv").read_text().splitlines()[0]


def kept(trainer, model):
    """Whether the newest checkpoint holds the trained network."""
    loaded = MLPClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=True)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    return torch.allclose(loaded.predict_proba(images), model.predict_proba(images), atol=1e-6)


class Writer(callbacks.BasePredictionWriter):
    written = 0

    def write_on_batch_end(self, *args):
        self.written += 1


def writes(callback):
    trainer, model = fit(callback, max_epochs=1)
    trainer.predict(model, trainer.datamodule, return_predictions=False)
    return callback.written > 0


def averages(callback):
    trainer, model = fit(callback)
    plain = fit(callbacks.Callback())[1]
    return kept(trainer, model) and not torch.equal(model.network.output.weight, plain.network.output.weight)


def prunes(callback):
    trainer, model = fit(callback)
    weights = torch.cat([layer.weight.flatten() for layer in model.network.linears()])
    return kept(trainer, model) and 0.4 < (weights == 0).float().mean() < 0.95


def swaps(callback):
    trainer, model = fit(callback)
    return callback.n_averaged > 0 and all(math.isfinite(p.sum()) for p in model.parameters()) and trainer.global_step


SUMMARY = {"enable_model_summary": True}
#: Each with how it is made, and what must be seen.
TABLE = {
    "BasePredictionWriter": (lambda: Writer("batch"), writes),
    "Callback": (callbacks.Callback, lambda it: fit(it)[0].global_step == 24),
    "DeviceStatsMonitor": (
        lambda: pytest.importorskip("psutil") and callbacks.DeviceStatsMonitor(cpu_stats=True),
        lambda it: "cpu" in logged(fit(it)[0]),
    ),
    "EMAWeightAveraging": (lambda: callbacks.EMAWeightAveraging(decay=0.9), averages),
    "EarlyStopping": (
        lambda: callbacks.EarlyStopping("val_loss", stopping_threshold=100.0),
        lambda it: fit(it)[0].global_step == 8,
    ),
    "GradientAccumulationScheduler": (
        lambda: callbacks.GradientAccumulationScheduler({0: 1, 1: 4}),
        lambda it: fit(it)[0].optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-6),
    ),
    "LambdaCallback": (
        lambda: callbacks.LambdaCallback(on_train_epoch_end=lambda trainer, module: setattr(trainer, "should_stop", 1)),
        lambda it: fit(it)[0].global_step == 8,
    ),
    "LearningRateMonitor": (lambda: callbacks.LearningRateMonitor("step"), lambda it: "lr-SGD" in logged(fit(it)[0])),
    "ModelCheckpoint": (lambda: callbacks.ModelCheckpoint(monitor="val_loss"), lambda it: kept(*fit(it, max_epochs=1))),
    "ModelPruning": (lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5), prunes),
    "ModelSummary": (callbacks.ModelSummary, lambda it: fit(it, **SUMMARY)[0].global_step == 24),
    "OnExceptionCheckpoint": (lambda: callbacks.OnExceptionCheckpoint("x"), lambda it: fit(it)[0].global_step == 24),
    "RichModelSummary": (callbacks.RichModelSummary, lambda it: fit(it, **SUMMARY)[0].global_step == 24),
    "RichProgressBar": (callbacks.RichProgressBar, lambda it: fit(it, enable_progress_bar=True)[0].global_step == 24),
    "SpikeDetection": (
        lambda: type("Spikes", (callbacks.SpikeDetection,), {})(),
        lambda it: fit(it)[0].global_step == 24,
    ),
    "StochasticWeightAveraging": (lambda: callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1), swaps),
    "TQDMProgressBar": (callbacks.TQDMProgressBar, lambda it: fit(it, enable_progress_bar=True)[0].global_step == 24),
    "ThroughputMonitor": (
        lambda: callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=2),
        lambda it: "batches_per_sec" in logged(fit(it)[0]),
    ),
    "Timer": (lambda: callbacks.Timer(timedelta(0)), lambda it: fit(it)[0].global_step == 0),
    "WeightAveraging": (callbacks.WeightAveraging, averages),
}
#: What others are made of, with nothing of their own that acts.
ABSTRACT = {"BaseFinetuning", "Checkpoint", "ProgressBar"}


def test_every_callback_is_in_one_table():
    refused = {callback.__name__ for callback in UNSUITABLE_CALLBACKS}
    assert set(TABLE) | refused | ABSTRACT == set(callbacks.__all__)
    assert not set(TABLE) & refused


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_a_callback_acts(name):
    make, is_seen = TABLE[name]
    assert is_seen(make())


@pytest.mark.parametrize("schedule", ["OneCycle", "Cosine"])
@pytest.mark.parametrize("scheduling", [{0: 2}, {1: 3}, {0: 1, 1: 4}, {0: 1, 7: 4}, {0: 5, 2: 1}])
def test_a_schedule_is_as_long_as_accumulation_makes_it(schedule, scheduling):
    trainer, model = fit(callbacks.GradientAccumulationScheduler(scheduling), schedule)
    assert model.cycle.count_steps(trainer, model._schedule) == trainer.global_step
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-5


@pytest.mark.parametrize("refused", UNSUITABLE_CALLBACKS, ids=lambda callback: callback.__name__)
def test_a_callback_is_refused(fail, refused):
    with pytest.raises(ValueError, match=f"{refused.__name__} can't be used with this network: "):
        fit(refused())
    message = fail("fit", *SMALL, f"--trainer.callbacks+={refused.__name__}")
    assert f"{refused.__name__} can't be used with this network: " in message
    assert [path for path in Path().iterdir() if path.name != "logs"] == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(bar):
    from cifar_lightning.cli.main import CLI

    flags = [flag for flag in SMALL if "progress" not in flag]
    trainer = CLI(["fit", *flags, "--trainer.max_epochs=1", f"--trainer.callbacks+={bar}"]).trainer
    assert type(trainer.progress_bar_callback).__name__ == bar
