from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import SMALL, rates
from lightning.pytorch import Trainer

from cifar_lightning import CIFAR10DataModule, Constant, MLPClassifier, OneCycle, PiecewiseConstant
from cifar_lightning.training import rate_record
from cifar_lightning.training.execution import Executor

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.filterwarnings("ignore")]


def train(schedule, executor=None, **options):
    data = CIFAR10DataModule(source="synthetic", synthetic_size=60, val_size=20, batch_size=8)  # 5 steps an epoch
    module = MLPClassifier(hidden_sizes=[4], optimizer="SGD", schedule=schedule, lr=0.1)
    module.executor = executor or Executor("never")
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(**quiet, **{"max_epochs": 3} | options).fit(module, data)
    return module.cycle.rates.points


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("compile", ["never", "always"])
def test_the_rate_of_every_step_is_known(compile):
    points = train(OneCycle(), Executor(compile))
    assert [epochs for epochs, _ in points] == pytest.approx([step / 5 for step in range(16)])
    assert [rate for _, rate in points] == pytest.approx(rates(OneCycle(), 15, 0.1))


def test_of_a_schedule_that_goes_by_epochs_the_rate_of_each_epoch():
    points = train(PiecewiseConstant([1, 2], [1.0, 0.5, 0.1]))
    assert points == [(0.0, 0.1), (1.0, 0.05), (2.0, pytest.approx(0.01)), (3.0, pytest.approx(0.01))]


def test_of_a_constant_rate_the_first():
    assert train(Constant()) == [(0.0, 0.1)]


def test_accumulated_steps_stand_where_their_last_batch_does():
    assert [epochs for epochs, _ in train(OneCycle(), accumulate_grad_batches=2, max_epochs=1)] == [0, 0.4, 0.8, 1]


def test_a_long_record_is_thinned(monkeypatch):
    whole = train(OneCycle(), max_epochs=8)
    monkeypatch.setattr(rate_record, "MOST_POINTS", 10)
    thinned = train(OneCycle(), max_epochs=8)
    assert set(thinned) < set(whole)
    assert thinned[0] == whole[0]
    assert 5 <= len(thinned) <= 10
    steps = {round((b[0] - a[0]) * 5) for a, b in pairwise(thinned)}
    assert steps == {8}


def test_a_resumed_training_knows_the_rates_from_before(run):
    flags = [*SMALL, "--data.batch_size=16", "--model.hidden_sizes=1x8", "--model.schedule=OneCycle"]
    flags.append("--trainer.max_epochs=3")
    saves = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=20",
             "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=middle"]  # fmt: skip
    run("fit", *flags, *saves, "--trainer.default_root_dir=whole")
    run("fit", *flags, "--trainer.default_root_dir=resumed", f"--ckpt_path={next(Path('whole').rglob('middle.ckpt'))}")
    whole, resumed = (
        torch.load(next(Path(root).rglob("last.ckpt")), weights_only=True)["learning_rates"]
        for root in ("whole", "resumed")
    )
    assert len(whole["points"]) == 46
    assert resumed == whole
