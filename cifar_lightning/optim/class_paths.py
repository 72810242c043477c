"""Optimizers and schedules as primitives: {"class_path": ..., "init_args": {...}}.

YAML files and checkpoints store them in this form, so that loading one never runs foreign code.
"""

import functools
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.errors import unknown_name
from cifar_lightning.optim import schedules
from cifar_lightning.optim.muon import MuonAdamW
from cifar_lightning.optim.schedule import Schedule
from cifar_lightning.primitives import PRIMITIVES, as_primitives

#: Optimizers that can't train this network, each with the reason.
UNSUITABLE_OPTIMIZERS = {
    "Muon": "it updates only matrices, and the network has vectors too: its biases. MuonAdamW updates those with AdamW",
    "SparseAdam": "it takes only sparse gradients, and the network's are dense",
}
#: Our own optimizers, by name.
OWN_OPTIMIZERS = {"MuonAdamW": MuonAdamW}


class Component(TypedDict):
    """A class and its arguments, as strings, numbers and lists."""

    class_path: str
    init_args: dict[str, Any]


def as_component(value: Any, base: type, namespace: str, set_elsewhere: Mapping[str, str]) -> Component:
    """Convert `value` to primitives.

    Args:
        value: A class name in `namespace`, a class path, a subclass of `base`, a `functools.partial` of one, or
            primitives.
        base: The class must be a subclass of this.
        namespace: Module in which short names are looked up.
        set_elsewhere: Arguments that are rejected here, each with the place where it is set instead.

    Raises:
        ValueError: If the class or an argument is unknown, or is set elsewhere.
    """
    match value:
        case Mapping() if "class_path" in value:
            path, init_args = value["class_path"], dict(value.get("init_args") or {})
        case functools.partial() if inspect.isclass(value.func):
            path, init_args = value.func, dict(value.keywords)
        case _:
            path, init_args = value, {}
    cls = find_class(path, base, namespace)
    for name, place in set_elsewhere.items():
        if name in init_args:
            raise ValueError(f"{name} must be set as {place} only, got {cls.__name__}({name}=...) too")
    known = set(inspect.signature(cls).parameters) - {"params", *set_elsewhere}
    for name in init_args:
        if name not in known:
            raise unknown_name(f"argument of {cls.__name__}", name, sorted(known))
    # Defaults are stored too, so a checkpoint keeps its values if they change.
    defaults = {name: value for name, value in default_arguments(cls).items() if name in known}
    defaults = {name: value for name, value in defaults.items() if isinstance(value, PRIMITIVES)}
    init_args = as_primitives(defaults | init_args)
    # YAML has no tuples.
    init_args = {name: list(arg) if isinstance(arg, tuple) else arg for name, arg in init_args.items()}
    return {"class_path": public_path(cls), "init_args": init_args}


def default_arguments(cls: type) -> dict[str, Any]:
    """The arguments of a class that have a default, each with its own copy of it."""
    parameters = inspect.signature(cls).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    # The signature of a dataclass shows a placeholder for a list.
    factories = {f.name: f.default_factory for f in fields(cls) if f.init} if is_dataclass(cls) else {}
    return defaults | {name: make() for name, make in factories.items() if make is not MISSING}


def find_class(path: Any, base: type, namespace: str) -> type:
    """Find the subclass of `base` called `path`, in `namespace` or, given its full path, in an imported module.

    No module is imported here: loading a checkpoint must not run code.

    Raises:
        ValueError: If there is no such class.
    """
    cls = path
    if isinstance(path, str):
        module, _, name = path.rpartition(".")
        cls = OWN_OPTIMIZERS.get(path) or getattr(sys.modules.get(module or namespace), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, base) and cls is not base):
        choices = vars(sys.modules[namespace]) | OWN_OPTIMIZERS
        known = [k for k, v in choices.items() if _is_choice(v, base) and k not in UNSUITABLE_OPTIMIZERS]
        raise unknown_name(f"{base.__name__.lower()} (or class path of an imported module)", path, sorted(known))
    return cls


def _is_choice(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and value is not base


def public_path(cls: type) -> str:
    """The shortest import path of the class: torch.optim.NAdam rather than torch.optim.nadam.NAdam.

    Checkpoints and configs use it, so they still load if the class moves within its package.
    """
    parts = cls.__module__.split(".")
    paths = (".".join(parts[: n + 1]) for n in range(len(parts)))
    module = next((p for p in paths if getattr(sys.modules.get(p), cls.__name__, None) is cls), cls.__module__)
    return f"{module}.{cls.__name__}"


def optimizer_component(value: Any) -> Component:
    """Convert an optimizer, from `torch.optim` or another module, to primitives.

    Args:
        value: Anything `as_component` takes, or a function that maps parameters and `lr` to an optimizer.

    Raises:
        ValueError: If the optimizer or an argument is unknown, if the optimizer can't train this network, or if it sets
            the learning rate.
    """
    name = _name_of_torch_optimizer(value)
    if name in UNSUITABLE_OPTIMIZERS:
        raise ValueError(f"{name} can't train this network: {UNSUITABLE_OPTIMIZERS[name]}. Choose another optimizer")
    is_class = inspect.isclass(value.func if isinstance(value, functools.partial) else value)
    if callable(value) and not is_class:  # as jsonargparse hands over a class with its arguments
        made = value([torch.zeros(1, requires_grad=True)], lr=1.0)
        known = set(inspect.signature(type(made)).parameters) - {"lr"}
        init_args = {name: argument for name, argument in made.defaults.items() if name in known}
        value = {"class_path": type(made), "init_args": init_args}
    return as_component(value, Optimizer, "torch.optim", {"lr": "the model's lr (--model.lr)"})


def _name_of_torch_optimizer(value: Any) -> str:
    """The name of the torch optimizer that `value` stands for; "" if it is not one of torch's."""
    if isinstance(value, Mapping):
        value = value.get("class_path")
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, str):
        module, _, name = value.rpartition(".")
        return name if module in ("", "torch.optim") else ""
    return value.__name__ if inspect.isclass(value) and public_path(value).startswith("torch.optim.") else ""


def build_optimizer(component: Component, parameters: Iterable[Tensor], lr: float) -> Optimizer:
    """Build the optimizer of `parameters`, with learning rate `lr`."""
    cls = find_class(component["class_path"], Optimizer, "torch.optim")
    optimizer: Optimizer = cls(parameters, lr=lr, **component["init_args"])
    return optimizer


def schedule_component(value: Any) -> Component:
    """Convert a schedule to primitives: an instance, a class, a class's name or path, or primitives.

    Raises:
        ValueError: If the schedule or an argument is unknown.
    """
    if isinstance(value, Schedule):
        value = {"class_path": type(value), "init_args": asdict(value)}  # type: ignore[call-overload]
    return as_component(value, Schedule, schedules.__name__, {})


def build_schedule(component: Component) -> Schedule:
    """Build a schedule from its primitives."""
    schedule: Schedule = find_class(component["class_path"], Schedule, schedules.__name__)(**component["init_args"])
    return schedule
