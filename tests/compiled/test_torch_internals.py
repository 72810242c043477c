import pytest
import torch

from cifar_lightning.compiled import hooks, torch_internals


@pytest.mark.parametrize("module", torch_internals.NAMES)
def test_every_name_is_there(module):
    missing = [name for name in torch_internals.missing_names() if name.startswith(module)]
    assert missing == []


@pytest.mark.parametrize("name", torch_internals.OPTIONS)
def test_every_option_is_one_of_inductors(name):
    assert name in torch_internals.NAMES["torch._inductor.config"]


def test_a_missing_name_is_named(monkeypatch):
    monkeypatch.setitem(torch_internals.NAMES, "torch.compiler", ["reset", "no_such_name"])
    monkeypatch.setitem(torch_internals.NAMES, "torch._no_such_module", ["name"])
    assert {"torch.compiler.no_such_name", "torch._no_such_module.name"} <= set(torch_internals.missing_names())
    assert "torch.compiler.reset" not in torch_internals.missing_names()


@pytest.mark.parametrize(
    ("version", "newer"), [("2.11.0+cu130", False), ("2.15.2", False), ("2.16.0a0", True), ("3.0.1", True)]
)
def test_newer_than_tested(monkeypatch, version, newer):
    monkeypatch.setattr(torch, "__version__", version)
    assert torch_internals.is_newer_than_tested() == newer


def test_hooks_of_modules_and_parameters():
    layer = torch.nn.Linear(2, 2)
    assert not hooks.has_hooks(layer)
    assert not hooks.has_gradient_hooks(layer.weight)
    layer.register_forward_hook(lambda *_: None)
    layer.weight.register_hook(lambda gradient: None)
    assert hooks.has_hooks(layer)
    assert hooks.has_gradient_hooks(layer.weight)
