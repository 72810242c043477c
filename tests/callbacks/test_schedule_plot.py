from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from lightning.pytorch import LightningModule
from PIL import Image
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from cifar_lightning.callbacks.schedule_plot import simulate


class Configured(LightningModule):
    """A module whose configure_optimizers returns what `form` makes of an optimizer."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def configure_optimizers(self):
        return self.form(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0, momentum=0.9))


def halve(optimizer, **others):
    return {"scheduler": ExponentialLR(optimizer, 0.5), **others}


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
    assert simulate(Configured(form), len(rates), 2) == (pytest.approx(rates), [0.9] * len(rates))


@pytest.mark.parametrize("form", [lambda o: None, lambda o: [o, o], lambda o: ([o, o], []), lambda o: "SGD"])
def test_what_is_not_one_optimizer(form):
    with pytest.raises(ValueError, match="no schedule to draw: expected configure_optimizers to return one optimizer"):
        simulate(Configured(form), 4, 2)


def test_a_schedule_is_drawn_without_training(run):
    printed = run("fit", f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--trainer.callbacks+=SchedulePlot")
    assert "30 steps: rate 0.005 at first, 0.05 at most" in printed
    with Image.open(next(Path().rglob("schedule.png"))) as picture:
        assert min(picture.size) > 300
    assert not list(Path().rglob("*.ckpt"))
