from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from cifar_lightning.callbacks.schedule_plot import simulate
from cifar_lightning.training.length import PlannedStep, planned_steps


class Configured(LightningModule):
    """A module whose configure_optimizers returns what `form` makes of an optimizer."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def configure_optimizers(self):
        return self.form(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0, momentum=0.9))


def halve(optimizer, **others):
    return {"scheduler": ExponentialLR(optimizer, 0.5), **others}


def plan(count, steps_per_epoch):
    """So many steps, each of one batch."""
    return [PlannedStep(i // steps_per_epoch, i % steps_per_epoch + 1, steps_per_epoch) for i in range(count)]


# The forms that Lightning documents for one optimizer.
@pytest.mark.parametrize(
    ("form", "rates"),
    [
        (lambda o: o, [1, 1, 1, 1]),
        (lambda o: [o], [1, 1, 1, 1]),
        (lambda o: {"optimizer": o}, [1, 1, 1, 1]),
        (lambda o: ([o], []), [1, 1, 1, 1]),
        (lambda o: ([o], [ExponentialLR(o, 0.5)]), [1, 1, 0.5, 0.5]),
        (lambda o: [[o], [halve(o, interval="step")]], [1, 0.5, 0.25, 0.125]),
        (lambda o: {"optimizer": o, "lr_scheduler": ExponentialLR(o, 0.5)}, [1, 1, 0.5, 0.5]),
        (lambda o: {"optimizer": o, "lr_scheduler": halve(o, interval="step")}, [1, 0.5, 0.25, 0.125]),
        (lambda o: [{"optimizer": o, "lr_scheduler": halve(o)}], [1, 1, 0.5, 0.5]),
        (
            lambda o: {"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o, patience=0), "monitor": "val_loss"},
            [1, 1, 1, 1, 0.1, 0.1],
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_rates_of_every_form(form, rates):
    assert simulate(Configured(form), plan(len(rates), 2)) == (pytest.approx(rates), [0.9] * len(rates))


class Watch(Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


class Scheduled(BoringModel):
    def __init__(self, **config):
        super().__init__()
        self.config = config

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": halve(optimizer, **self.config)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"max_steps": 17},
        {"max_epochs": -1, "max_steps": 17},
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 2, "limit_train_batches": 5, "max_steps": 10},
        {"callbacks": [GradientAccumulationScheduler({0: 2, 2: 3})]},
    ],
)
def test_the_rates_are_those_of_the_training(interval, frequency, flags):
    watch, module = Watch(), Scheduled(interval=interval, frequency=frequency)
    callbacks = [watch, *flags.get("callbacks", [])]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    limits = {"max_epochs": 4, "limit_train_batches": 7, "limit_val_batches": 0, "accelerator": "cpu"}
    trainer = Trainer(**quiet | limits | flags | {"callbacks": callbacks})
    planned = []
    module.on_fit_start = lambda: planned.extend(planned_steps(trainer))
    trainer.fit(module)
    assert simulate(module, planned)[0] == pytest.approx(watch.rates)


@pytest.mark.parametrize("form", [lambda o: None, lambda o: [o, o], lambda o: ([o, o], []), lambda o: "SGD"])
def test_what_is_not_one_optimizer(form):
    with pytest.raises(ValueError, match="no schedule to plot: expected configure_optimizers to return one optimizer"):
        simulate(Configured(form), plan(4, 2))


def test_a_schedule_is_drawn_without_training(run):
    printed = run("fit", f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--trainer.callbacks+=SchedulePlot")
    assert "30 steps: learning rate 0.005 at first, 0.05 at the peak" in printed
    with Image.open(next(Path().rglob("schedule.png"))) as picture:
        assert min(picture.size) > 300
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize("config", ["one_cycle", "selu"])
def test_the_picture_names_schedule_steps_and_epochs(run, monkeypatch, config):
    titles = []
    monkeypatch.setattr(
        "cifar_lightning.callbacks.schedule_plot.draw_schedule", lambda *args: titles.append((args[2], args[4]))
    )
    flags = [f"--config={ROOT}/configs/{config}.yaml", *SMALL, "--data.batch_size=32", "--trainer.max_epochs=3"]
    run("fit", *flags, "--trainer.callbacks+=SchedulePlot", "--trainer.logger=false")  # which would show the picture
    name = {"one_cycle": "OneCycle()", "selu": "Constant()"}[config]
    assert titles == [(pytest.approx([step / 8 for step in range(25)]), f"{name}: 24 steps in 3 epochs")]
