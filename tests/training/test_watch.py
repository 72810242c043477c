"""A compiled training equals the plain one, whatever a callback does in between."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.compiled.watch import Watch, find_hooks
from cifar_lightning.training.execution import Executor

pytestmark = [pytest.mark.usefixtures("uncompiled"), pytest.mark.filterwarnings("ignore")]


class AtEpochOne(Callback):
    """Change something at the start of the second of three epochs."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.change(pl_module, trainer.optimizers[0])


def fit(compile, change, **options):
    torch.manual_seed(0)
    arguments = {"hidden_sizes": "2x8", "optimizer": "SGD", "lr": 0.05, "l2": 0.01} | options
    module = MLPClassifier(**arguments)
    module.executor = Executor(compile, steps=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=3, accelerator="cpu", precision="64-true", limit_val_batches=0,
                      callbacks=[AtEpochOne(change)], **quiet)  # fmt: skip
    trainer.fit(module, CIFAR10DataModule(source="synthetic", synthetic_size=200, val_size=40, batch_size=8))
    return module


def freeze(module, optimizer):
    module.network.hidden[0].requires_grad_(False)


def set_group(name, value):
    def change(module, optimizer):
        optimizer.param_groups[0][name] = value

    return change


def set_network(name, value):
    return lambda module, optimizer: setattr(module.network, name, value)


def drop_more(module, optimizer):
    module.network.hidden[1].dropout.p = 0.9


def stop_normalizing(module, optimizer):
    module.network.hidden[0].norm.eval()


def change_rate(module, optimizer):
    optimizer.param_groups[0]["lr"] = 0.2


def forward_twice(module, optimizer):
    forward = module.forward
    module.forward = lambda images: 2 * forward(images)


def replace_activation(module, optimizer):
    module.network.hidden[1].activation = nn.Tanh()


def hook_layer(module, optimizer):
    module.network.hidden[0].register_forward_hook(lambda layer, args, output: 0.5 * output)


def hook_gradient(module, optimizer):
    module.network.output.weight.register_hook(lambda gradient: 0.1 * gradient)


def hook_backward(module, optimizer):
    module.network.output.register_full_backward_hook(lambda layer, inputs, outputs: (0.1 * inputs[0],))


def move_parameter(module, optimizer):
    weight = module.network.output.weight
    weight.data = weight.data.clamp(-0.1, 0.1)


def forget_state(module, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["weight_decay"] = 0.5


def hook_steps(module, optimizer):
    def zero_bias(*_):
        module.network.output.bias.data.zero_()

    optimizer.register_step_post_hook(zero_bias)


def hook_module(module, optimizer):
    module.register_forward_hook(lambda module, args, output: 0.5 * output)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (freeze, {}, "which parameters are frozen"),
        (freeze, {"optimizer": "NAdam", "lr": 1e-4}, "which parameters are frozen"),
        (set_group("momentum", 0.9), {}, "an option of the optimizer"),
        (set_group("weight_decay", 0.1), {}, "an option of the optimizer"),
        (set_group("weight_decay", 0.1), {"optimizer": "NAdam", "lr": 1e-4}, "an option of the optimizer"),
        (set_group("betas", (0.5, 0.9)), {"optimizer": "Adam", "lr": 1e-4}, ""),  # which steps itself
        (set_network("l2", 0.5), {}, "an option of a module"),
        (set_network("l1", 1e-4), {}, "an option of a module"),
        (drop_more, {"dropout": "alpha"}, "an option of a module"),
        (stop_normalizing, {"normalization": "batch"}, "the mode of a module"),
        (forward_twice, {}, "the module's forward"),
        (replace_activation, {}, "a module"),
        (hook_layer, {}, "the hooks of a module"),
        (hook_gradient, {}, "the hooks of a parameter"),
        (hook_backward, {}, "the hooks of a module"),
        (move_parameter, {}, "where a parameter is"),
        (forget_state, {}, "an option of the optimizer"),
        (hook_steps, {}, "the hooks of the optimizer"),
        (hook_module, {}, "the module's hooks"),
        (change_rate, {}, ""),
        (set_network("max_norm", 0.1), {}, ""),  # which is no part of the graph
    ],
)
def test_what_changes_in_between_acts(capsys, change, options, expected):
    plain, compiled = (fit(compile, change, **options) for compile in ("never", "always"))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-5)  # roundings grow
    unchanged = fit("never", lambda module, optimizer: None, **options)
    assert not torch.equal(unchanged.network.output.weight, plain.network.output.weight)
    said = capsys.readouterr().out
    assert (f"plain, 1 thread ({expected} has changed)" in said) == bool(expected)


class AtStart(Callback):
    """Freeze a layer after the execution of the steps was chosen."""

    def on_train_start(self, trainer, pl_module):
        freeze(pl_module, None)


@pytest.mark.parametrize("compile", ["auto", "always"])
def test_what_a_callback_does_at_the_start_decides_the_path(monkeypatch, compile):
    monkeypatch.setattr("cifar_lightning.training.execution.seconds_to_compile", lambda recipe, layers: 0.0)
    module = MLPClassifier(hidden_sizes="2x8")
    module.executor = Executor(compile)
    before = module.network.hidden[0].linear.weight.clone()
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[AtStart()], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, limit_val_batches=0)  # fmt: skip
    data = CIFAR10DataModule(source="synthetic", synthetic_size=200, val_size=40, batch_size=8)
    if compile == "always":
        with pytest.raises(ValueError, match="can't be compiled any more: expected .*; received frozen parameters"):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    assert trainer.global_step == 20
    assert torch.equal(module.network.hidden[0].linear.weight, before)


class Saves(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        torch.save(pl_module, "whole.pt")
        copied = copy.deepcopy(pl_module)
        assert copied.executor.step is None


def test_a_module_is_copied_and_saved_while_it_trains():
    module = MLPClassifier(hidden_sizes="2x8")
    module.executor = Executor("always")
    trainer = Trainer(max_steps=3, accelerator="cpu", callbacks=[Saves()], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, limit_val_batches=0)  # fmt: skip
    trainer.fit(module, CIFAR10DataModule(source="synthetic", synthetic_size=200, val_size=40, batch_size=8))
    assert Path("whole.pt").stat().st_size > 0


def test_what_was_there_before_decides_the_path():
    module = MLPClassifier(hidden_sizes="2x8")
    assert find_hooks(module) == ""
    module.network.hidden[0].register_full_backward_hook(lambda *_: None)
    assert find_hooks(module) == "hooks of network.hidden.0"
    module = MLPClassifier(hidden_sizes="2x8")
    module.network.output.bias.register_hook(lambda gradient: None)
    assert find_hooks(module) == "hooks of parameters"
    module = MLPClassifier(hidden_sizes="2x8")
    module.training_step = lambda batch, index: None
    module.trainer = Trainer(accelerator="cpu", logger=False)
    module.executor = Executor("always")
    with pytest.raises(ValueError, match="can't be compiled: expected .*; received MLPClassifier.training_step"):
        module.choose_execution()


def test_nothing_changes_by_validation_or_by_a_step():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
    optimizer = torch.optim.NAdam(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()  # which makes its state
    watch = Watch(network, optimizer)
    network.eval()
    assert watch.find_change() == "the mode of a module"
    network.train()
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert watch.find_change() == ""
