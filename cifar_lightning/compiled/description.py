"""Describes everything a compiled step depends on: equal descriptions mean equal code."""

import functools
import sys
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lightning.compiled.hooks import has_hooks

PACKAGE = __name__.partition(".")[0]
#: Packages whose code is identified by torch's version or by the hash of our sources.
KNOWN = ("torch", PACKAGE)
#: Attributes that every module has and that are not options.
OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}


class UndescribedError(ValueError):
    """A value whose code or contents a description can't identify."""


def describe(value: Any) -> Any:
    """Describe a value in JSON primitives: modules by class and options, tensors by everything except their values.

    Raises:
        UndescribedError: If code outside of torch and this package affects what it computes.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case torch.dtype() | torch.device() | torch.layout():
            return str(value)
        case Tensor():
            return _describe_tensor(value)
        case nn.Module():
            return _describe_module(value)
        case functools.partial():
            return ["partial", *map(describe, (value.func, value.args, value.keywords))]
        case FunctionType() | type():
            return _describe_code(value)
        case Mapping():
            return [[str(key), describe(item)] for key, item in value.items()]  # a list: the order of layers matters
        case Iterable():
            return [describe(item) for item in value]
    raise UndescribedError(f"a {type(value).__name__}")


def _describe_tensor(tensor: Tensor) -> list[Any]:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise UndescribedError(f"a tensor of class {type(tensor).__name__}")
    kind = [str(tensor.dtype), str(tensor.device), str(tensor.layout)]
    return [*kind, list(tensor.shape), list(tensor.stride()), tensor.requires_grad, tensor.is_leaf]


def _describe_module(module: nn.Module) -> list[Any]:
    """Describe a module and everything inside it; a repeated part is described by its first occurrence."""
    places: dict[int, int] = {}

    def describe_part(part: nn.Module | Tensor | None) -> Any:
        if part is None:
            return None
        if id(part) in places:
            return ["met before", places[id(part)]]
        places[id(part)] = len(places)
        if isinstance(part, Tensor):
            return _describe_tensor(part)
        cls = type(part)
        _describe_code(cls.forward)
        if has_hooks(part):
            raise UndescribedError(f"hooks of a {cls.__name__}")
        own = vars(part)
        options = {name: value for name, value in own.items() if name not in OF_EVERY_MODULE}
        if any(isinstance(value, Tensor | nn.Module) for value in options.values()):
            raise UndescribedError(f"a tensor or a module among the options of a {cls.__name__}")
        inside = [
            [[name, describe_part(value)] for name, value in own[kind].items()]
            for kind in ("_parameters", "_buffers", "_modules")
        ]
        return [_describe_code(cls), describe(options), inside]

    return list(describe_part(module))


def _describe_code(code: Any) -> str:
    """The full name of a function or class, checked to be what its module has under that name."""
    found: Any = sys.modules.get(code.__module__)
    for part in code.__qualname__.split("."):
        found = getattr(found, part, None)
    if code.__module__.partition(".")[0] not in KNOWN or found is not code:
        raise UndescribedError(f"code of {code.__module__}.{code.__qualname__}")
    return f"{code.__module__}.{code.__qualname__}"


def check_functions() -> None:
    """Check that no other package has replaced functions of torch.

    Raises:
        UndescribedError: If one has.
    """
    for name, function in vars(F).items():
        if isinstance(function, FunctionType) and function.__module__.partition(".")[0] != "torch":
            raise UndescribedError(f"torch.nn.functional.{name} of {function.__module__}")
