"""The pieces in programs that know nothing of this package: Lightning's CLI, subclasses, averaging, quantization."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning import CIFAR10DataModule, DeepMLP, MLPClassifier, OneCycle, compute_statistics

IMAGES = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8)
LABELS = torch.arange(96) % 10
NETWORKS = [
    {},
    {"activation": "elu", "normalization": "batch", "dropout": "standard"},
    {"activation": "prelu", "normalization": "layer", "norm_input": True},
    {"dropout": "alpha", "dropout_position": "all"},
]


def small(**options):
    return MLPClassifier(**{"hidden_sizes": "2x8"} | options)


def data(**options):
    return CIFAR10DataModule(**{"source": "synthetic", "synthetic_size": 200, "val_size": 40} | options)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(**quiet | {"accelerator": "cpu", "enable_checkpointing": False} | options)


def trained(**options):
    module = small(**options)
    trainer().fit(module, data())
    return module.eval()


# ----------------------------------------------------------------------------------------------------- Lightning's CLI

STOCK = [
    "--data.source=synthetic",
    "--data.synthetic_size=200",
    "--data.val_size=40",
    "--model.hidden_sizes=[8, 8]",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("flags", "optimizer", "schedule"),
    [
        ([], {"class_path": "torch.optim.NAdam"}, "Constant"),
        (["--model.optimizer=SGD", "--model.optimizer.momentum=0.5"], {"momentum": 0.5}, "Constant"),
        (["--model.optimizer=torch.optim.RMSprop", "--model.schedule=OneCycle"], {"alpha": 0.99}, "OneCycle"),
        (["--model.schedule=Power", "--model.schedule.s=7"], {"class_path": "torch.optim.NAdam"}, "Power"),
    ],
)
def test_lightnings_own_cli(flags, optimizer, schedule):
    cli = LightningCLI(MLPClassifier, CIFAR10DataModule, args=["fit", *STOCK, *flags])
    assert cli.trainer.global_step == 5
    hparams = cli.model.hparams
    chosen = hparams["optimizer"] | hparams["optimizer"]["init_args"]
    assert optimizer.items() <= chosen.items()
    assert hparams["schedule"]["class_path"].endswith(f".{schedule}")
    assert cli.model.predict_proba(IMAGES).shape == (96, 10)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_cli_runs_its_own_config():
    flags = ["--model.optimizer=RMSprop", "--model.schedule=Exponential", "--trainer.logger=CSVLogger",
             "--trainer.logger.save_dir=logs"]  # fmt: skip
    first = LightningCLI(MLPClassifier, CIFAR10DataModule, args=["fit", *STOCK, *flags])
    config = f"{first.trainer.log_dir}/config.yaml"
    second = LightningCLI(MLPClassifier, CIFAR10DataModule, args=["fit", "--config", config])
    assert dict(second.model.hparams) == dict(first.model.hparams)
    assert torch.equal(second.model.network.output.weight, first.model.network.output.weight)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_cli_evaluates_and_resumes_its_own_checkpoints():
    keep = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    flags = [flag for flag in STOCK if "logger" not in flag] + keep
    first = LightningCLI(WithAlpha, CIFAR10DataModule, args=["fit", *flags, "--model.alpha=0.1"])
    path = first.trainer.checkpoint_callback.best_model_path
    loaded = WithAlpha.load_from_checkpoint(path, weights_only=True)
    assert loaded.hparams["alpha"] == 0.1
    torch.testing.assert_close(loaded.predict_proba(IMAGES), first.model.predict_proba(IMAGES))
    trainer().fit(loaded, data())
    again = [flag for flag in STOCK if "max_epochs" not in flag] + [f"--ckpt_path={path}", "--weights_only=true"]
    for command in ("validate", "test", "predict"):
        cli = LightningCLI(WithAlpha, CIFAR10DataModule, args=[command, *again], save_config_callback=None)
        assert torch.equal(cli.model.network.output.weight, first.model.network.output.weight)
    resume = ["fit", *again, "--trainer.max_epochs=2"]
    cli = LightningCLI(WithAlpha, CIFAR10DataModule, args=resume, save_config_callback=None)
    assert cli.trainer.global_step == 10


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_cli_brings_its_own_optimizer():
    flags = ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.5"]
    cli = LightningCLI(MLPClassifier, CIFAR10DataModule, args=["fit", *STOCK, *flags])
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_cli_takes_class_paths():
    flags = [re.sub(r"--(model|data)\.", r"--\1.init_args.", flag) for flag in STOCK]
    classes = ["--model=cifar_lightning.MLPClassifier", "--data=cifar_lightning.CIFAR10DataModule"]
    cli = LightningCLI(
        MLPClassifier,
        CIFAR10DataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=["fit", *classes, *flags],
    )
    assert cli.trainer.global_step == 5


# ----------------------------------------------------------------------------------------------------------- subclasses


class WithAlpha(MLPClassifier):
    def __init__(self, alpha=0.5, **kw):
        super().__init__(**kw)
        self.save_hyperparameters()


class OwnDefault(MLPClassifier):
    def __init__(self, optimizer="SGD", alpha=0.5, **kw):
        self.alpha = alpha
        super().__init__(optimizer=optimizer, **kw)


class SavesOne(MLPClassifier):
    def __init__(self, alpha=0.5, optimizer="NAdam", **kw):
        super().__init__(optimizer=optimizer, **kw)
        self.save_hyperparameters("alpha")


@pytest.mark.parametrize("cls", [WithAlpha, OwnDefault, SavesOne])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "SGD", "lr": 0.01},
        {"schedule": "OneCycle"},
        {"optimizer": torch.optim.RMSprop, "schedule": OneCycle(div_factor=5)},
        {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}}},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_subclass_may_save_its_own_hyperparameters(cls, options):
    module, run = cls(alpha=0.25, hidden_sizes="2x8", **options), trainer()
    run.fit(module, data())
    plain, other = MLPClassifier(hidden_sizes="2x8", **options), trainer()
    other.fit(plain, data())
    if "optimizer" in options or cls is not OwnDefault:
        assert type(run.optimizers[0]) is type(other.optimizers[0])
        assert str(run.optimizers[0]) == str(other.optimizers[0])
    assert len(run.lr_scheduler_configs) == len(other.lr_scheduler_configs)


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "train_loss", "logits"])
@pytest.mark.parametrize("frequency", [1, 2])
def test_a_subclass_may_reduce_the_rate_by_any_metric(monitor, frequency):
    class OnPlateau(MLPClassifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            # Nothing is better by so much: the rate falls at each look but the first.
            scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=1e3, threshold_mode="abs")
            config = {"scheduler": scheduler, "monitor": monitor, "frequency": frequency}
            return {"optimizer": optimizer, "lr_scheduler": config}

        def validation_step(self, batch, batch_idx):
            logits = super().validation_step(batch, batch_idx)
            self.log("logits", logits.mean())
            return logits

    run = trainer(max_epochs=4)
    run.fit(OnPlateau(hidden_sizes="2x8"), data())
    falls = 4 // frequency - 1
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**falls)


@pytest.mark.parametrize("options", [{}, {"optimizer": "SGD"}, {"schedule": "OneCycle"}, {"activation": "elu"}])
def test_a_checkpoint_makes_the_subclass_again(tmp_path, options):
    module, run = WithAlpha(alpha=0.25, hidden_sizes="2x8", **options), trainer()
    run.fit(module, data())
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = WithAlpha.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert loaded.hparams["alpha"] == 0.25
    assert dict(loaded.hparams) == dict(module.hparams)
    torch.testing.assert_close(loaded.predict_proba(IMAGES), module.predict_proba(IMAGES))
    trainer().fit(loaded, data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


# ------------------------------------------------------------------------------------------- predictions, plain loaders


@pytest.mark.parametrize("options", NETWORKS)
def test_predictions_are_tensors(options):
    predictions = trainer().predict(small(**options), data(eval_batch_size=25))
    assert [prediction.shape for prediction in predictions] == [(25, 10), (15, 10)]
    assert all(isinstance(prediction, Tensor) for prediction in predictions)
    torch.testing.assert_close(torch.cat(predictions).sum(1), torch.ones(40))


@pytest.mark.parametrize("what", ["fit", "validate", "test", "predict"])
def test_bytes_without_statistics_are_refused_and_standardized_with_them(what):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=32)
    module = small()
    with pytest.raises(ValueError, match="no statistics to standardize these images with: expected .*got uint8"):
        getattr(trainer(), what)(module, loader)
    statistics = compute_statistics(IMAGES, "channel")
    module.standardize.set_statistics(statistics)
    getattr(trainer(), what)(module, loader)
    expected = module.eval().network((IMAGES.float() - statistics.mean) / statistics.std)
    torch.testing.assert_close(module(IMAGES), expected)


def test_floats_are_taken_as_they_are():
    images = torch.randn(96, 3, 32, 32)
    module = small()
    trainer().fit(module, DataLoader(TensorDataset(images, LABELS), batch_size=32))
    torch.testing.assert_close(module.eval()(images), module.network(images))


# -------------------------------------------------------------------------------------------------- states and averages


@pytest.mark.parametrize("options", NETWORKS)
def test_a_state_holds_tensors_only(options):
    module = trained(**options)
    for part in (module, module.network, module.standardize, small(**options)):
        assert all(isinstance(value, Tensor) for value in part.state_dict().values())


def test_a_state_goes_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module, other = trained(), small()
    safetensors.save_file(module.state_dict(), tmp_path / "x.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "x.safetensors"))
    assert torch.equal(other.predict_proba(IMAGES), module.predict_proba(IMAGES))


def test_states_can_be_averaged_by_hand():
    one, two, mean = trained(), trained(), small()
    states = one.state_dict(), two.state_dict()
    averaged = {name: torch.stack([s[name] for s in states]).float().mean(0).to(states[0][name]) for name in states[0]}
    mean.load_state_dict(averaged)
    assert mean.standardize.scaling == "feature"
    expected = (one.network.output.weight + two.network.output.weight) / 2
    torch.testing.assert_close(mean.network.output.weight, expected)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model(use_buffers):
    one, two = trained(), trained()
    average = AveragedModel(one, use_buffers=use_buffers)
    for each in (one, two):
        average.update_parameters(each)
    expected = (one.network.output.weight + two.network.output.weight) / 2
    torch.testing.assert_close(average.module.network.output.weight, expected)
    assert average.module.standardize.scaling == "feature"
    assert average(IMAGES).shape == (96, 10)


@pytest.mark.parametrize("scaling", ["raw", "unit", "channel", "feature"])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.995, 0.999])
def test_moving_averages_keep_the_scaling(scaling, decay):
    module = small(activation="elu")
    module.standardize.set_statistics(compute_statistics(IMAGES, scaling))
    average = AveragedModel(module, use_buffers=True, avg_fn=get_ema_avg_fn(decay))
    for _ in range(300):
        average.update_parameters(module)
    assert average.module.standardize.scaling == scaling
    torch.testing.assert_close(average.module.standardize.mean, module.standardize.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [None, 8, 1000])
def test_lightnings_moving_average_is_of_a_network_that_standardizes(start):
    module, run = (
        small(),
        trainer(max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.9, update_starting_at_step=start)]),
    )
    run.fit(module, data())
    statistics = run.datamodule.statistics
    assert module.standardize.scaling == "feature"
    torch.testing.assert_close(module.standardize.mean, statistics.mean)
    torch.testing.assert_close(module.standardize.std, statistics.std)


def test_lightnings_weight_averaging():
    module = small()
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
    trainer(max_epochs=3, callbacks=[averaging]).fit(module, data())
    assert module.standardize.scaling == "feature"
    assert module.predict_proba(IMAGES).isfinite().all()


# --------------------------------------------------------------------------------------------- quantization and copies


@pytest.mark.parametrize("options", NETWORKS)
def test_quantization_replaces_every_linear_layer(options):
    module = trained(**options)
    count = len(module.network.linears())
    assert all(type(linear) is nn.Linear for linear in module.network.linears())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(module.network, {nn.Linear})
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(isinstance(part, kind) for part in quantized.modules()) == count == 3
    inputs = module.standardize(IMAGES)
    difference = quantized(inputs).softmax(1) - module.network(inputs).softmax(1)
    assert 0 < difference.abs().max() < 0.05


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: torch.save(module, "x.pt") or torch.load("x.pt", weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("cls", [MLPClassifier, WithAlpha])
def test_a_trained_module_can_be_copied(copied, cls):
    module = cls(hidden_sizes="2x8", schedule="OneCycle")
    trainer().fit(module, data())
    other = copied(module)
    assert type(other) is cls
    assert dict(other.hparams) == dict(module.hparams)
    assert torch.equal(other.predict_proba(IMAGES), module.predict_proba(IMAGES))
    trainer().fit(other, data())
    assert not torch.equal(other.network.output.weight, module.network.output.weight)


def test_a_network_can_be_copied():
    network = DeepMLP(hidden_sizes="2x8").eval()
    inputs = torch.randn(5, 3072)
    assert torch.equal(pickle.loads(pickle.dumps(network))(inputs), network(inputs))
