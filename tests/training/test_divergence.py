"""A training whose loss is no number ends at that step, and says where it began."""

import re
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.analysis.signals import first_layer_not_finite
from cifar_lightning.errors import DivergenceError
from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.training.checkpoints import BestCheckpoint
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.lightning_internals import judge

FLAGS = [*SMALL, "--trainer.max_epochs=3", "--model.hidden_sizes=3x8", "--trainer.log_every_n_steps=1"]
pytestmark = pytest.mark.usefixtures("undrawn", "uncompiled")


@pytest.mark.parametrize("optimizer", ["NAdam", "SGD", "Adam"])
@pytest.mark.parametrize("compile", ["never", "always"])
def test_it_ends_at_the_step_and_keeps_the_checkpoint_of_before(compile, optimizer):
    model = MLPClassifier(hidden_sizes="3x8", lr=1e-3, optimizer=optimizer)
    model.executor = Executor(compile)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=32)
    best = BestCheckpoint()
    trainer = Trainer(max_epochs=5, logger=False, callbacks=[best], enable_progress_bar=False, default_root_dir=".")

    def break_it(*args):
        if trainer.current_epoch == 2:
            with torch.no_grad():
                model.network.hidden[1].linear.weight.fill_(torch.inf)

    model.on_train_epoch_start = break_it
    with pytest.raises(DivergenceError) as error:
        trainer.fit(model, data)
    said = str(error.value)
    assert re.search(r"the loss is nan in step 17 \(epoch 3, learning rate 0.001", said)  # 8 steps an epoch
    assert "the first layer whose output is not finite is network.hidden.1.linear" in said
    assert said.endswith(f"Earlier checkpoints: {best.best_model_path}")
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("compile", ["never", "always"])
def test_the_command_ends_in_one_line_with_status_1(compile, capfd):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(["fit", *FLAGS, "--model.optimizer=SGD", "--model.lr=1e5", f"--execution.compile={compile}"])
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert re.search(r"error: the loss is (nan|inf) in step \d+ \(epoch 1, .*, last gradient norm .*first layer", said)
    assert "Traceback" not in said
    assert not list(Path().glob("runs/*/*/checkpoints/*"))


def test_a_finders_sweep_may_diverge(run):
    said = run(
        "fit", *FLAGS, "--trainer.callbacks+=LRFinder", "--trainer.callbacks.max_lr=1e6", "--model.optimizer=SGD"
    )
    assert "epoch   3" in said


def test_no_network_of_a_loss_that_is_no_number_is_the_best():
    best = BestCheckpoint()
    trainer = Trainer(logger=False, enable_progress_bar=False)
    for value, expected in ((torch.nan, False), (torch.inf, False), (3.0, True)):
        assert best.check_monitor_top_k(trainer, torch.tensor(value)) == expected


def test_the_first_layer_that_is_not_finite():
    network = DeepMLP(in_features=5, hidden_sizes=[4, 4, 4])
    x = torch.randn(2, 5)
    assert first_layer_not_finite(network, x) == ""
    with torch.no_grad():
        network.hidden[1].linear.bias[0] = torch.nan
        network.output.bias[0] = torch.nan
    assert first_layer_not_finite(network, x) == "hidden.1.linear"
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("check_finite", [True, False])
def test_early_stopping_takes_no_loss_that_is_no_number_for_the_best(mode, check_finite):
    stopper = EarlyStopping("val_loss", patience=2, mode=mode, check_finite=check_finite)
    verdicts = [judge(stopper, {"val_loss": value}, at_epoch_end=False) for value in (1.0, torch.nan, torch.nan)]
    assert verdicts == [False, check_finite, True]
    assert stopper.best_score == 1.0
