"""The finder in Lightning. Each stock defect has its scenario here."""

import csv
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SMALL
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning import CIFAR10DataModule, MLPClassifier, OneCycle
from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.optim.lr_range_test import LRSweepError

SWEEP = {"num_steps": 160, "min_lr": 1e-3, "max_lr": 10.0}
FLAGS = [
    "--trainer.callbacks+=LRFinder",
    "--trainer.callbacks.num_steps=160",
    "--trainer.callbacks.min_lr=1e-3",
]
ONE_CYCLE = [f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--data.batch_size=16", "--model.hidden_sizes=2x30"]


def model(**options):
    torch.manual_seed(0)
    return MLPClassifier(**{"hidden_sizes": "2x30", "optimizer": "SGD", "schedule": "OneCycle"} | options)


def data():
    return CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=16)


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
    return Trainer(
        **quiet | {"accelerator": "cpu", "enable_checkpointing": False} | options,
        default_root_dir="out",
        callbacks=list(callbacks),
    )


class Plain(LightningModule):
    """A module of somebody else's: hyperparameter `rate`, batch norm, dropout, and logging of its own."""

    def __init__(self, rate=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(10, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(16, 3),
        )
        self.seen = []

    def training_step(self, batch):
        x, y = batch
        self.seen.append(x[:, 0].tolist())
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)


def plain_loader():
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(1))


def test_with_one_cycle_its_result_is_not_lost():
    module, rates = model(), []

    class Watch(LRFinder):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(watch := Watch(**SWEEP))
    run.fit(module, data())
    found = watch.found["found"]
    assert found == watch.sweep.suggest("valley") != 1e-3
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert scheduler.optimizer is run.optimizers[0]
    assert scheduler.optimizer.param_groups[0]["max_lr"] == pytest.approx(found)
    assert rates[0] == pytest.approx(found / 10)  # div_factor
    assert max(rates) == pytest.approx(found)
    assert module.hparams["lr"] == found


@pytest.mark.parametrize("rule", ["steep", "minimum", "slide", "climb"])
def test_every_rule_can_be_taken(rule):
    finder, module = LRFinder(**SWEEP, rule=rule), model(schedule="Constant")
    run = trainer(finder, max_epochs=1)
    run.fit(module, data())
    assert run.optimizers[0].param_groups[0]["lr"] == finder.sweep.suggest(rule)


@pytest.mark.parametrize("user", ["ours", "plain"])
def test_a_run_with_the_finder_is_bitwise_equal_to_one_without(user):
    final = []
    for callbacks in ([], [LRFinder(**SWEEP, apply=False, attribute="lr" if user == "ours" else "rate")]):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        if user == "ours":
            module = model(dropout="alpha", dropout_position="all", schedule="OneCycle")
            run = trainer(*callbacks)
            run.fit(module, data())
        else:
            module, run = Plain(), trainer(*callbacks)
            run.fit(module, plain_loader())
            final.append(module.seen)
        final.append([p.clone() for p in module.state_dict().values() if isinstance(p, torch.Tensor)])
        final.append([random.random(), np.random.rand(), torch.rand(1).item(), run.global_step])
        final.append({name: value.item() for name, value in run.callback_metrics.items()})
    half = len(final) // 2
    for without, with_finder in zip(final[:half], final[half:], strict=True):
        if isinstance(without[0] if isinstance(without, list) else None, torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(without, with_finder, strict=True))
        else:
            assert without == with_finder


class Attribute(Plain):
    """A module that goes by an attribute, as many do."""

    def __init__(self, rate=0.01):
        super().__init__(rate)
        self.rate = rate

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Fixed(Plain):
    """A module whose optimizer goes by no hyperparameter."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("module", [Plain, Attribute])
def test_it_reaches_the_optimizer_of_any_module(module):
    run = trainer(finder := LRFinder(**SWEEP, attribute="rate"))
    run.fit(module(), plain_loader())
    assert run.optimizers[0].param_groups[0]["lr"] == finder.found["found"]


@pytest.mark.parametrize(
    "module", [Fixed(), model(schedule=OneCycle(max_lr=0.05))], ids=["fixed rate", "a peak of its own"]
)
def test_a_suggestion_that_would_be_lost_is_refused(module):
    attribute = "rate" if isinstance(module, Fixed) else "lr"
    with pytest.raises(ValueError, match="the suggested learning rate does not reach the optimizer: expected .* got"):
        trainer(LRFinder(**SWEEP, attribute=attribute)).fit(module, plain_loader() if attribute == "rate" else data())


def test_it_can_set_a_schedules_own_peak():
    module, run = (
        model(schedule=OneCycle(max_lr=0.05)),
        trainer(finder := LRFinder(**SWEEP, attribute="schedule.init_args.max_lr")),
    )
    run.fit(module, data())
    assert run.optimizers[0].param_groups[0]["max_lr"] == finder.found["found"]
    assert module.hparams["schedule"]["init_args"]["max_lr"] == finder.found["found"]


class Skips(Plain):
    """A module that skips every third batch."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 0 else super().training_step(batch)["loss"]


class Starts(Plain):
    """A module that keeps something from each of its hooks for the next."""

    def on_fit_start(self):
        self.fit_started = True

    def on_train_start(self):
        self.scale = 1.0 if self.fit_started else None

    def on_train_epoch_start(self):
        self.calls = {"before_backward": 0, "after_backward": 0, "before_step": 0, "batch_end": 0}

    def on_train_batch_start(self, batch, batch_idx):
        self.factor = self.scale

    def training_step(self, batch):
        return self.factor * super().training_step(batch)["loss"]

    def on_before_backward(self, loss):
        self.calls["before_backward"] += 1

    def on_after_backward(self):
        self.calls["after_backward"] += self.net[0].weight.grad is not None

    def on_before_optimizer_step(self, optimizer):
        assert optimizer.param_groups[0]["params"][0] is next(self.parameters())
        assert self.optimizers().param_groups[0] is optimizer.param_groups[0]
        self.calls["before_step"] += 1

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert not outputs["loss"].requires_grad
        self.calls["batch_end"] += 1


class Closure(Plain):
    """A module whose optimizer calls the closure several times."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=self.hparams.rate, max_iter=3)


class Groups(Plain):
    """A module whose first layer learns at a tenth of the rate."""

    def configure_optimizers(self):
        rates = {self.net[0]: self.hparams.rate / 10, self.net[1]: self.hparams.rate, self.net[4]: self.hparams.rate}
        return torch.optim.Adam([{"params": layer.parameters(), "lr": rate} for layer, rate in rates.items()])


class Tenth(Plain):
    """A module all of which learns at a tenth of the rate."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate / 10)


class NotSaved(Plain):
    """A module that goes by an attribute and saves no hyperparameters."""

    def __init__(self, rate=0.01):
        super().__init__(rate)
        self.hparams.clear()
        self.rate = rate

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Transfers(Plain):
    """A module that takes what its hooks make of a batch, and its arguments as they come."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {"x": batch[0], "y": batch[1]}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch | {"x": batch["x"] + 0.0}

    def training_step(self, *args):
        batch, batch_idx = args
        return super().training_step((batch["x"], batch["y"]))["loss"] + 0.0 * batch_idx


@pytest.mark.parametrize("module", [Skips, Starts, Closure, Groups, Tenth, NotSaved, Transfers])
def test_it_works_on_any_module(module):
    torch.manual_seed(0)
    user = module()
    weights = [weight.clone() for weight in user.parameters()]
    options = {"min_lr": 0.02, "max_lr": 2.0} if module is Closure else {}  # LBFGS' rates are around 1
    run = trainer(finder := LRFinder(**SWEEP | options, attribute="rate"), max_steps=1)
    finder.on_train_start = lambda trainer, pl_module: weights.extend(p.clone() for p in pl_module.parameters())
    run.fit(user, plain_loader())
    half = len(weights) // 2
    assert all(torch.equal(a, b) for a, b in zip(weights[:half], weights[half:], strict=True))
    found = finder.found["found"]
    assert 1e-3 <= found <= 10
    rates = [group["lr"] for group in run.optimizers[0].param_groups]
    share = {Groups: [0.1, 1.0, 1.0], Tenth: [0.1]}.get(module, [1.0])
    assert rates == pytest.approx([found * each for each in share])


def test_what_each_loss_is_averaged_over_is_not_trained_on():
    class Notes(Plain):
        trained, measured = set(), set()

        def training_step(self, batch):
            (self.trained if torch.is_grad_enabled() else self.measured).add(batch[0][0, 0].item())
            return (self.net(batch[0]).exp() * batch[0][:, :1]).sum()  # so noisy that it is averaged

    x = torch.randn(4000, 10)
    loader = DataLoader(TensorDataset(x, torch.zeros(4000)), batch_size=4)
    finder = LRFinder(1e-9, 1e-8, 50, attribute="rate", apply=False)
    trainer(finder, max_steps=1, limit_train_batches=0).fit(Notes(), loader)
    assert len(Notes.trained) == 50
    assert len(Notes.measured - Notes.trained) == 63  # the pilot, with which the sweep begins, is measured too


def test_hooks_of_a_step_run_in_the_sweep():
    torch.manual_seed(0)
    run = trainer(finder := LRFinder(**SWEEP, attribute="rate", apply=False))
    seen = []

    class Watched(Starts):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            if run.state.stage is not None and run.num_training_batches == float("inf"):
                seen.append(dict(self.calls))

    run.fit(Watched(), plain_loader())
    steps = len(finder.sweep.lrs)
    assert seen[-1]["before_step"] == steps - 1  # the last batch ends before its step
    assert seen[-1]["before_backward"] == seen[-1]["after_backward"] == steps - 1
    assert seen[-1]["batch_end"] > steps  # some batches are measured only


def test_a_module_that_skips_every_batch_is_refused():
    class Never(Plain):
        def training_step(self, batch):
            return None

    with pytest.raises(ValueError, match="expected a training_step that returns a loss, got None 1000 times"):
        trainer(LRFinder(**SWEEP, attribute="rate")).fit(Never(), plain_loader())


class Configured(LightningModule):
    """A module that takes all of its hyperparameters in one argument."""

    def __init__(self, cfg):
        super().__init__()
        self.save_hyperparameters(cfg)
        self.net = torch.nn.Linear(10, cfg["classes"])

    training_step = Plain.training_step
    seen = property(lambda self: [])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)


@pytest.mark.parametrize("logs", [True, False])
@pytest.mark.parametrize("module", [Configured, Plain])
def test_hparams_stay_as_the_module_saved_them(module, logs, tmp_path):
    torch.manual_seed(0)
    user = Configured({"rate": 0.01, "classes": 3}) if module is Configured else Plain()
    user._log_hyperparams = logs  # save_hyperparameters(logger=logs)
    logger = CSVLogger(tmp_path)
    run = trainer(finder := LRFinder(**SWEEP, attribute="rate"), logger=logger, max_steps=2)
    run.fit(user, plain_loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = module.load_from_checkpoint(tmp_path / "last.ckpt")
    others = {"classes": 3} if module is Configured else {}
    assert dict(loaded.hparams) == dict(user.hparams) == {"rate": finder.found["found"], **others}
    logged = Path(logger.log_dir) / "hparams.yaml"
    assert (yaml.safe_load(logged.read_text()) == dict(user.hparams)) if logs else not logged.exists()


def test_nothing_of_a_sweep_reaches_the_logger(tmp_path):
    class Logs(Plain):
        def training_step(self, batch):
            self.logger.log_metrics({"own": 1.0}, step=self.global_step)
            return super().training_step(batch)

    torch.manual_seed(0)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer(LRFinder(**SWEEP, attribute="rate"), logger=logger, max_steps=3).fit(Logs(), plain_loader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["own"]]) == 3


class Boring(BoringModel):
    """Lightning's own, with a rate."""

    def __init__(self):
        super().__init__()
        self.lr = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("batch_size", [32, pytest.param(1, marks=pytest.mark.slow)])
def test_noisy_losses_are_no_obstacle(batch_size):
    accepted = 0
    for seed in range(5):
        torch.manual_seed(seed)
        loader = DataLoader(RandomDataset(32, 64), batch_size=batch_size)
        run = trainer(finder := LRFinder(1e-5, 1.0, 100), max_steps=1)
        try:
            run.fit(Boring(), loader)
        except LRSweepError:
            continue
        accepted += 1
        assert 1e-3 < finder.found["found"] < 1
    assert accepted == 5


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_true_precisions(precision):
    run = trainer(finder := LRFinder(**SWEEP, apply=False, attribute="rate"), precision=precision)
    run.fit(Plain(), plain_loader())
    assert len(finder.sweep.lrs) > 10


def test_it_stops_whatever_the_least_number_of_epochs():
    run = trainer(LRFinder(**SWEEP, stop=True, attribute="rate"), min_epochs=1)
    run.fit(Plain(), plain_loader())
    assert run.global_step == 0


def test_it_sweeps_as_many_steps_as_asked_whatever_max_epochs_says():
    finder = LRFinder(1e-6, 1e-3, 100, apply=False)  # 15 batches an epoch
    validated = []
    module = model(schedule="Constant")
    module.validation_step = lambda *args: validated.append(args)
    run = trainer(finder, max_epochs=1, limit_val_batches=0)
    run.fit(module, data())
    assert len(finder.sweep.lrs) == 100
    assert validated == []
    assert run.global_step == 15
    assert not list(Path().rglob("*.ckpt"))  # in memory


def test_accumulation_clipping_and_precision_are_those_of_the_trainer():
    losses = {}
    for name, flags in {
        "plain": {},
        "accumulated": {"accumulate_grad_batches": 3},
        "clipped": {"gradient_clip_val": 1e-3},
        "bf16": {"precision": "bf16-mixed"},
    }.items():
        torch.manual_seed(0)
        finder = LRFinder(**SWEEP, apply=False)
        trainer(finder, max_epochs=1, **flags).fit(model(schedule="Constant"), data())
        losses[name] = finder.sweep.losses
    assert len({loss[0] for loss in losses.values()}) >= 3
    # A norm of 1e-3 leaves the weights where they were for long.
    assert abs(losses["clipped"][30] - losses["clipped"][0]) < 1
    assert losses["bf16"][:5] == pytest.approx(losses["plain"][:5], rel=0.02)


def test_the_rate_stands_in_hparams_loggers_and_checkpoint_but_config_keeps_what_was_asked(run):
    run("fit", *ONE_CYCLE, *FLAGS, "--trainer.max_epochs=2")
    (folder,) = Path("runs/one_cycle").iterdir()
    hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert hparams["lr"] == checkpoint["hyper_parameters"]["lr"] != 0.05
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["lr"] == 0.05
    events = EventAccumulator(str(folder)).Reload()
    start = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    assert start.hparams["lr"].number_value == hparams["lr"]
    with (folder / "lr_finder.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss"]
    with Image.open(folder / "lr_finder.png") as picture:
        assert min(picture.size) > 300
    with (folder / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["val_loss"]]) == 2  # the run's, not the sweep's


def test_a_resume_is_not_swept_and_is_bit_exact(run):
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=4"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]
    whole, resumed = "--trainer.default_root_dir=whole", "--trainer.default_root_dir=resumed"
    run("fit", *ONE_CYCLE, *FLAGS, *every, "--trainer.max_epochs=2", whole)
    middle = next(Path("whole").rglob("stepstep=20*.ckpt"))
    printed = run("fit", *ONE_CYCLE, *FLAGS, "--trainer.max_epochs=2", resumed, f"--ckpt_path={middle}")
    assert "LRFinder: the run is resumed, so there is no sweep." in printed
    expected, received = (
        torch.load(next(Path(name).rglob("last.ckpt")), weights_only=True) for name in ("whole", "resumed")
    )
    assert received["global_step"] == expected["global_step"] == 30
    for name, value in expected["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(received["state_dict"][name], value), name
    assert received["hyper_parameters"] == expected["hyper_parameters"]


@pytest.mark.parametrize("given", [1e-3, 2e-3])
def test_a_module_that_resumes_has_the_rate_that_was_found(given):
    first, kept = model(lr=1e-3, schedule="Exponential"), trainer(LRFinder(num_steps=160), max_epochs=1)
    kept.fit(first, data())
    kept.save_checkpoint("first.ckpt")
    resumed, then = model(lr=given, schedule="Exponential"), trainer(LRFinder(num_steps=160))
    then.fit(resumed, data(), ckpt_path="first.ckpt")
    found = first.hparams.lr if given == 1e-3 else given  # a rate that was changed since is the user's
    assert resumed.hparams.lr == resumed.hparams_initial.lr == found != 1e-3
    then.save_checkpoint("then.ckpt")
    assert torch.load("then.ckpt", weights_only=True)["hyper_parameters"]["lr"] == found


def test_it_can_stop_after_the_sweep(run):
    printed = run("fit", *ONE_CYCLE, *FLAGS, "--trainer.callbacks.stop=true")
    for rule in ("valley (taken)", "steep", "minimum", "slide", "climb"):
        assert rule in printed
    assert re.search(r"written to runs/\S+:\n  lr_finder.csv, lr_finder.png\n", printed)
    assert re.search(r"\nnext: cifar-lightning fit, with the same config and --model.lr 0\.", printed)
    assert "best epoch" not in printed
    assert not list(Path().rglob("*.ckpt"))


class Flat(Plain):
    """A module whose loss no rate can lower."""

    def training_step(self, batch):
        return 1.0 + 0 * self.net[0].weight.sum()


class Two(Plain):
    """A module with two optimizers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters()), torch.optim.Adam(self.parameters())]


@pytest.mark.parametrize(
    ("module", "loader", "finder", "message"),
    [
        (Two, plain_loader, {"attribute": "rate"}, "needs automatic optimization, got manual optimization"),
        (Plain, plain_loader, {"attribute": "lr"}, "no such hyperparameter: expected an attribute .* rate; got 'lr'"),
        (
            Plain,
            lambda: DataLoader([], batch_size=2),
            {"attribute": "rate"},
            "needs a loader with at least one batch",
        ),
        (Flat, plain_loader, {"attribute": "rate"}, "the loss never descended"),
    ],
)
def test_wrong_use(module, loader, finder, message):
    with pytest.raises(ValueError, match=message):
        trainer(LRFinder(**{"num_steps": 40} | finder)).fit(module(), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 1, "max_lr": 0.1}, "expected learning rates 0 < min_lr < max_lr"),
        ({"num_steps": 9}, "the sweep is too short"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        LRFinder(**options)


@pytest.mark.slow
def test_ranks_use_the_same_rate(tmp_path):
    flags = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "cifar_lightning", "fit", *ONE_CYCLE, *FLAGS, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.rglob("lr_finder.csv"))) == 1
    assert torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["hyper_parameters"]["lr"] != 0.05
