"""A stack of classifiers in other people's programs, without the command line."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.cycle import Cycle
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.stacked_classifier import StackedClassifier


def classifier(lr, seed=1):
    seed_everything(seed, verbose=False)
    return MLPClassifier(lr=lr, optimizer="SGD", hidden_sizes=[20, 20])


def data(**options):
    return CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=20, **options)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False} | quiet | options)


def test_two_rates_in_a_program():
    copies = [Copy(f"lr={lr}", classifier(lr), 1) for lr in (0.001, 0.01)]
    stack = StackedClassifier(classifier(0.1), copies)
    fit = trainer()
    fit.fit(stack, datamodule=data(order_seed=1))
    alone = trainer()
    alone.fit(classifier(0.01), datamodule=data(order_seed=1))
    for name in ("train_loss", "val_loss", "val_accuracy"):
        ours, theirs = fit.callback_metrics[f"{name}/lr=0.01"], alone.callback_metrics[name]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [len(each.rows) for each in copies] == [2, 2]
    assert copies[1].best["val_loss"] == pytest.approx(min(row["val_loss"] for row in copies[1].rows))


class Rates(Callback):
    """The learning rates of all networks in each step."""

    def on_train_start(self, trainer, pl_module):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def rates_of_a_longer_run(module):
    """The rates of a run of one epoch, then resumed for two more."""
    module.cycle, rates = Cycle("new"), Rates()
    first = trainer(max_epochs=1, callbacks=[rates])
    first.fit(module, datamodule=data())
    steps = rates.steps
    first.save_checkpoint("first.ckpt")
    trainer(max_epochs=3, callbacks=[rates]).fit(module, datamodule=data(), ckpt_path="first.ckpt")
    return steps + rates.steps


@pytest.mark.parametrize("names", [["Cosine", "Power", "OneCycle", "Exponential"], ["Power", "Performance", "Cosine"]])
def test_each_network_of_a_resumed_run_has_the_rates_of_its_own(names):
    networks = [MLPClassifier(lr=0.1, optimizer="SGD", hidden_sizes=[4], schedule=name) for name in names]
    copies = [Copy(name, each, 1) for name, each in zip(names, networks, strict=True)]
    stacked = rates_of_a_longer_run(StackedClassifier(classifier(0.1), copies))
    for index, name in enumerate(names):
        alone = MLPClassifier(lr=0.1, optimizer="SGD", hidden_sizes=[4], schedule=name)
        assert [step[index] for step in stacked] == [rate for (rate,) in rates_of_a_longer_run(alone)]


def test_a_validation_that_only_runs_because_training_stops_is_reported_but_not_kept():
    copy = Copy("a", classifier(0.1), 1)
    losses = []
    for scale, is_due in ((9.0, True), (0.0, False)):  # logits of 0 have the lower loss
        copy.classifier.val_metrics.update(scale * torch.eye(10), torch.arange(10).flip(0))
        losses.append(copy.end_validation(1, is_due)["val_loss"])
    assert losses[1] < losses[0]
    copy.classifier.train_metrics.update(torch.eye(10), torch.arange(10))
    copy.end_epoch(is_whole=False, known={"epoch": 1.0})
    assert copy.rows[-1]["val_loss"] == copy.best["val_loss"] == losses[1]
    assert copy.validated["val_loss"] == losses[0]


def test_the_training_ends_with_the_last_that_stops():
    copies = [Copy(f"lr={lr}", classifier(lr), 1) for lr in (1e-9, 1e-8, 1e-7)]
    stopper = EarlyStopping("val_loss", min_delta=1.0, patience=1)
    stack = StackedClassifier(classifier(0.1), copies, [stopper])
    fit = trainer(max_epochs=9)
    fit.fit(stack, datamodule=data())
    assert fit.current_epoch == 2
    assert [each.stopped_epoch for each in copies] == [2, 2, 2]
    assert stopper.wait_count == 0  # each was judged by a copy of it


def test_it_waits_for_the_least_number_of_epochs():
    copies = [Copy("one", classifier(1e-9), 1)]
    stack = StackedClassifier(classifier(0.1), copies, [EarlyStopping("val_loss", min_delta=1.0, patience=1)])
    fit = trainer(max_epochs=9, min_epochs=4)
    fit.fit(stack, datamodule=data())
    assert copies[0].stopped_epoch == 4


def test_none_is_a_mistake():
    with pytest.raises(ValueError, match="nothing to train: expected at least one network, got none"):
        StackedClassifier(classifier(0.1), [])


def test_several_devices_are_refused():
    stack = StackedClassifier(classifier(0.1), [Copy("one", classifier(0.1), 1)])
    fit = trainer(devices=2, strategy="ddp_spawn")
    stack.trainer = fit
    with pytest.raises(ValueError, match="must be on one device: expected --trainer.devices 1, got 2"):
        stack.setup("fit")


class Raises(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError("enough")


def test_an_exception_leaves_process_and_networks_as_they_were(monkeypatch, uncompiled):
    monkeypatch.setattr("cifar_lightning.training.choice.choose_threads", lambda *sizes: 1)
    torch.set_num_threads(2)
    base, copies = classifier(0.1), [Copy(f"lr={lr}", classifier(lr), 1) for lr in (0.001, 0.01)]
    base.executor = Executor("always", steps=4)
    with pytest.raises(RuntimeError, match="enough"):
        trainer(callbacks=[Raises()]).fit(StackedClassifier(base, copies), datamodule=data())
    assert torch.get_num_threads() == 2
    ours, other = (each.classifier.network.output.weight.untyped_storage().data_ptr() for each in copies)
    assert ours != other


class Changes(Callback):
    """Change the second network before the second epoch."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.change(pl_module.classifiers[1].network)


def freeze(network):
    network.output.requires_grad_(False)


def hook(network):
    network.output.register_forward_hook(lambda *args: None)


def drop_more(network):
    network.hidden[1].dropout.p = 0.9


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (freeze, "which parameters are frozen"),
        (hook, "the hooks of a module"),
        (drop_more, "an option of a module"),
        (lambda network: None, ""),
    ],
)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_change_that_a_compiled_stack_can_not_follow_is_refused(uncompiled, change, what, optimizer):
    options = {"optimizer": optimizer, "hidden_sizes": [20, 20], "dropout": "standard"}
    networks = [MLPClassifier(lr=lr, **options) for lr in (0.1, 0.001, 0.01)]
    networks[0].executor = Executor("always", steps=4)
    stack = StackedClassifier(networks[0], [Copy(str(i), each, 1) for i, each in enumerate(networks[1:])])
    expected = pytest.raises(ValueError, match=f"has changed since it was compiled: {what}")
    with expected if what else contextlib.nullcontext():
        trainer(callbacks=[Changes(change)]).fit(stack, datamodule=data())


class HooksAtStart(Callback):
    def on_train_start(self, trainer, pl_module):
        hook(pl_module.classifiers[1].network)


@pytest.mark.parametrize("compile", ["auto", "always"])
def test_what_a_callback_does_at_the_start_decides_the_path(monkeypatch, capsys, uncompiled, compile):
    monkeypatch.setattr("cifar_lightning.training.execution.seconds_to_compile", lambda recipe, layers: 0.0)
    base, copies = classifier(0.1), [Copy(f"lr={lr}", classifier(lr), 1) for lr in (0.001, 0.01)]
    base.executor = Executor(compile)
    fit = trainer(callbacks=[HooksAtStart()])
    refused = pytest.raises(ValueError, match="after a callback has changed it: .*--execution.compile auto or never")
    with refused if compile == "always" else contextlib.nullcontext():
        fit.fit(StackedClassifier(base, copies), datamodule=data())
    assert fit.global_step == (0 if compile == "always" else 24)
    assert "Training steps: compiled" in (said := capsys.readouterr().out)
    assert ("Training steps: plain" in said) == (compile == "auto")


def test_a_compiled_stack_goes_on_when_a_network_has_stopped(uncompiled):
    copies = [Copy(f"lr={lr}", classifier(lr), 1) for lr in (1e-9, 0.01)]
    base = classifier(0.1)
    base.executor = Executor("always", steps=4)
    fit = trainer(max_epochs=4)
    fit.fit(StackedClassifier(base, copies, [EarlyStopping("val_loss", min_delta=1e-4, patience=1)]), datamodule=data())
    assert copies[0].stopped_epoch == 2
    assert len(copies[1].rows) == fit.current_epoch > 2
