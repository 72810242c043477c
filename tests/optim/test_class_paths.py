import functools
from dataclasses import asdict

import pytest
import torch

from cifar_lightning import OneCycle
from cifar_lightning.optim import schedules
from cifar_lightning.optim.class_paths import (
    build_optimizer,
    build_schedule,
    optimizer_component,
    schedule_component,
)

SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}


def test_defaults_are_stored_too():
    init_args = optimizer_component(SGD)["init_args"]
    assert init_args["momentum"] == 0.9
    assert init_args["nesterov"] is False
    assert init_args["weight_decay"] == 0
    assert not {"lr", "params"} & set(init_args)
    assert optimizer_component("NAdam")["init_args"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    "value",
    [
        SGD,
        {"class_path": "SGD", "init_args": {"momentum": 0.9}},
        functools.partial(torch.optim.SGD, momentum=0.9),
    ],
)
def test_one_form_for_all(value):
    assert optimizer_component(value) == optimizer_component(SGD)


@pytest.mark.parametrize("value", ["NAdam", "torch.optim.NAdam", "torch.optim.nadam.NAdam", torch.optim.NAdam])
def test_names_paths_and_classes(value):
    assert optimizer_component(value)["class_path"] == "torch.optim.NAdam"


def test_build():
    optimizer = build_optimizer(SGD, [torch.zeros(3, requires_grad=True)], 0.25)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NAdm", r"unknown optimizer .*; got 'NAdm' \(did you mean 'NAdam'"),
        ("Optimizer", "unknown optimizer"),
        ("os.system", "unknown optimizer"),
        (torch.nn.Linear, "unknown optimizer"),
        ({"class_path": "SGD", "init_args": {"lr": 1}}, r"lr must be set as .* got SGD\(lr=...\)"),
        ({"class_path": "SGD", "init_args": {"mom": 1}}, r"unknown argument of SGD: .*did you mean 'momentum'"),
    ],
)
def test_errors(value, message):
    with pytest.raises(ValueError, match=message):
        optimizer_component(value)


def test_never_imports(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemError('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="unknown optimizer"):
        optimizer_component("trap.Optimizer")


def test_schedules():
    component = schedule_component(OneCycle(div_factor=5))
    assert component["class_path"] == "cifar_lightning.OneCycle"
    assert component["init_args"]["div_factor"] == 5
    assert build_schedule(component) == OneCycle(div_factor=5)
    assert build_schedule(schedule_component("OneCycle")) == OneCycle()
    assert schedule_component("cifar_lightning.optim.schedules.OneCycle") == schedule_component("OneCycle")


@pytest.mark.parametrize("cls", schedules.Schedule.__subclasses__())
def test_every_default_of_a_schedule_is_stored(cls):
    assert schedule_component(cls.__name__)["init_args"] == asdict(cls())
    assert schedule_component(cls)["init_args"] == asdict(cls())


def test_the_error_for_an_unknown_schedule_lists_all():
    every = "Constant, Cosine, Exponential, OneCycle, Performance, PiecewiseConstant, Power"
    with pytest.raises(ValueError, match=f"unknown schedule .*{every}; .*did you mean 'OneCycle'"):
        schedule_component("OnCycle")


@pytest.mark.parametrize("name", ["Muon", "SparseAdam"])
def test_an_optimizer_that_can_not_train_the_network_is_refused_with_the_reason(name):
    cls = getattr(torch.optim, name, None)
    if cls is None:
        pytest.skip("this torch has none")
    for value in (name, f"torch.optim.{name}", cls, functools.partial(cls), {"class_path": name}):
        with pytest.raises(ValueError, match=f"{name} can't train this network: .* and the network"):
            optimizer_component(value)
    with pytest.raises(ValueError, match="unknown optimizer") as unknown:
        optimizer_component("Muo")
    assert f" {name}," not in str(unknown.value)
