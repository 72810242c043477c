"""A compiled training equals the plain one, whatever a callback does in between."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

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


class AfterValidation(AtEpochOne):
    """Change something in the middle of the second epoch, between two batches of an item."""

    on_train_epoch_start = Callback.on_train_epoch_start

    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not trainer.is_last_batch:
            self.change(pl_module, trainer.optimizers[0])


class BeforeBatch(AtEpochOne):
    """Change something just before the seventh batch of the second epoch."""

    on_train_epoch_start = Callback.on_train_epoch_start

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert len(batch) == 2  # images and labels
        if trainer.current_epoch == 1 and batch_idx == 6:
            self.change(pl_module, trainer.optimizers[0])


def fit(compile, change, when=AtEpochOne, **options):
    torch.manual_seed(0)
    arguments = {"hidden_sizes": "2x8", "optimizer": "SGD", "lr": 0.05, "l2": 0.01} | options
    module = MLPClassifier(**arguments)
    module.network.hidden[0].add_module("scaled", Scaled())
    module.executor = Executor(compile, steps=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
             "enable_model_summary": False}  # fmt: skip
    validation = {"val_check_interval": 10} if when is AfterValidation else {"limit_val_batches": 0}
    trainer = Trainer(max_epochs=3, accelerator="cpu", precision="64-true", callbacks=[when(change)],
                      **validation, **quiet)  # fmt: skip
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


def replace_buffer(module, optimizer):
    module.standardize.mean = module.standardize.mean + 20


def replace_buffer_values(module, optimizer):
    module.standardize.mean += 20


class Scaled(nn.Module):
    """A layer of somebody else's, with an option of its own."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return x * self.scale


def set_scale(module, optimizer):
    module.network.hidden[0].scaled.scale = 0.5


def scale_by_tensor(module, optimizer):
    module.network.hidden[0].scaled.scale = torch.linspace(0.5, 1, 8)


def forget_state(module, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["weight_decay"] = 0.5


def hook_steps(module, optimizer):
    def zero_bias(*_):
        module.network.output.bias.data.zero_()

    optimizer.register_step_post_hook(zero_bias)


def hook_module(module, optimizer):
    module.register_forward_hook(lambda module, args, output: 0.5 * output)


def own_training_step(module, optimizer):
    def step(batch, batch_idx):
        images, labels = batch
        return 0.5 * torch.nn.functional.cross_entropy(module(images), labels)

    module.training_step = step


def wrap_training_step(module, optimizer):
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step([batch[0], batch[1].flip(0)], batch_idx)


def own_backward(module, optimizer):
    module.backward = lambda loss: (0.1 * loss).backward()


def own_zero_grad(module, optimizer):
    module.optimizer_zero_grad = lambda epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)


def own_optimizer_step(module, optimizer):
    def step(epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        module.network.output.bias.grad.zero_()
        optimizer.step()

    module.optimizer_step = step


def own_batch_end(module, optimizer):
    module.on_train_batch_end = lambda *_: module.network.output.bias.data.zero_()


def own_hook_of_gradients(module, optimizer):
    module.on_after_backward = lambda: module.network.output.bias.grad.zero_()


def replace_optimizer_step(module, optimizer):
    step = optimizer.step

    def twice(closure=None):
        step(closure)
        return step()

    optimizer.step = twice


def hook_all_optimizers(module, optimizer):
    """Until the training's end."""
    handle = register_optimizer_step_post_hook(lambda *_: module.network.output.bias.data.zero_())
    module.on_train_end = handle.remove


def replace_optimizer(module, optimizer):
    module.trainer.strategy.optimizers = [torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.5)]


def accumulate(module, optimizer):
    module.trainer.accumulate_grad_batches = 2


def clip(module, optimizer):
    module.trainer.gradient_clip_val = 0.01


class ZeroBias(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.network.output.bias.grad.zero_()


def add_callback(module, optimizer):
    module.trainer.callbacks = [*module.trainer.callbacks, ZeroBias()]


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
        (replace_buffer, {}, "where a buffer is"),
        (replace_buffer_values, {}, ""),
        (set_scale, {"activation": "elu"}, "an option of a module"),
        (scale_by_tensor, {"activation": "elu"}, "an option of a module"),
        (forget_state, {}, "an option of the optimizer"),
        (hook_steps, {}, "the step of the optimizer"),
        (hook_all_optimizers, {}, "the step of the optimizer"),
        (replace_optimizer_step, {}, "the step of the optimizer"),
        (replace_optimizer_step, {"schedule": "OneCycle"}, "the step of the optimizer"),
        (replace_optimizer_step, {"optimizer": "Adam", "lr": 1e-4}, ""),
        (hook_module, {}, "the module's hooks"),
        (own_training_step, {}, "the module's training_step"),
        (wrap_training_step, {}, "the module's training_step"),
        (own_backward, {}, "the module's backward"),
        (own_zero_grad, {}, "the module's optimizer_zero_grad"),
        (own_optimizer_step, {}, "the module's optimizer_step"),
        (own_batch_end, {}, "the module's on_train_batch_end"),
        (own_hook_of_gradients, {}, "the module's on_after_backward"),
        (replace_optimizer, {}, "the trainer's optimizer"),
        (accumulate, {}, "the trainer's accumulate_grad_batches"),
        (clip, {}, "the trainer's clipping"),
        (add_callback, {}, "the list of callbacks"),
        (change_rate, {}, ""),
        (set_network("max_norm", 0.1), {}, "an option of a module"),
    ],
)
def test_what_changes_in_between_acts(capsys, change, options, expected):
    plain, compiled = (fit(compile, change, **options) for compile in ("never", "always"))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-5)  # roundings grow
    if change is not own_zero_grad:  # which does what is done anyway
        unchanged = fit("never", lambda module, optimizer: None, **options)
        assert not torch.equal(unchanged.network.output.weight, plain.network.output.weight)
    said = capsys.readouterr().out
    assert (f"plain, 1 thread ({expected} has changed)" in said) == bool(expected)


@pytest.mark.parametrize("when", [AfterValidation, BeforeBatch])
@pytest.mark.parametrize("change", [freeze, own_training_step, own_backward, accumulate])
def test_what_changes_within_an_epoch_acts_from_the_next_batch_on(when, change):
    plain, compiled = (fit(compile, change, when, lr=0.01) for compile in ("never", "always"))
    assert compiled.trainer.global_step == plain.trainer.global_step
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-5)


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
        with pytest.raises(ValueError, match="after a callback has changed it: got frozen parameters"):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    assert trainer.global_step == 20
    assert torch.equal(module.network.hidden[0].linear.weight, before)


class RaisesAt(Callback):
    """Raise something in one hook of the second epoch, and look at what is there then."""

    def __init__(self, hook, error):
        self.hook, self.error, self.flat = hook, error, None

    def act(self, trainer, pl_module):
        if trainer.current_epoch == 1 and self.hook:
            weights = pl_module.network.output.weight, pl_module.network.output.bias
            self.flat = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
            raise self.error

    def on_train_epoch_start(self, trainer, pl_module):
        if self.hook == "on_train_epoch_start":
            self.act(trainer, pl_module)

    def on_validation_end(self, trainer, pl_module):
        if self.hook == "on_validation_end":
            self.act(trainer, pl_module)


class Other(LightningModule):
    """A module of somebody else's, with one weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_validation_end"])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_process_trainer_and_network_as_they_were(monkeypatch, hook, error):
    monkeypatch.setattr("cifar_lightning.training.choice.choose_threads", lambda *sizes: 1)
    torch.set_num_threads(2)
    module, raises = MLPClassifier(hidden_sizes="2x8", optimizer="SGD"), RaisesAt(hook, error)
    module.executor = Executor("always", steps=4)
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[raises], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False)  # fmt: skip
    data = CIFAR10DataModule(source="synthetic", synthetic_size=200, val_size=40, batch_size=8)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError):
        trainer.fit(module, data)
    assert raises.flat
    assert torch.get_num_threads() == 2
    weights = module.network.output.weight, module.network.output.bias
    assert weights[0].untyped_storage().data_ptr() != weights[1].untyped_storage().data_ptr()
    # The same trainer trains any other module, and the same module is trained by any other loop.
    other, raises.hook = Other(), ""
    before = other.layer.weight.clone()
    trainer.fit(other, data)
    assert not torch.equal(other.layer.weight, before)
    batch = next(iter(data.train_dataloader()))
    module.training_step(batch, 0).backward()
    assert module.network.output.weight.grad.abs().sum() > 0


def test_a_second_fit_says_nothing_of_callbacks(caplog):
    module = MLPClassifier(hidden_sizes="2x8")
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False)  # fmt: skip
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=40, batch_size=8)
    callbacks = []
    for each in (module, MLPClassifier(hidden_sizes="2x8")):
        trainer.fit(each, data)
        callbacks.append(len(trainer.callbacks))
    assert callbacks[0] == callbacks[1]
    assert "override existing callbacks" not in caplog.text


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
    with pytest.raises(ValueError, match="cannot compile the training step: got MLPClassifier.training_step"):
        module.on_fit_start()


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
