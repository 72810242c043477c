"""What a compiled step depends on, as primitives: equal descriptions, equal code."""

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
#: Whose code is known by a version, or by this package's sources.
KNOWN = ("torch", PACKAGE)
#: What every module has, besides what is described of it.
OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}


class UndescribedError(ValueError):
    """Something with code or contents that a description would not tell from another's."""


def describe(value: Any) -> Any:
    """Describe a value by primitives that JSON can hold: modules by classes and options, tensors by all but values.

    Raises:
        UndescribedError: If other things than torch's and this package's own decide what it computes.
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
            return [[str(key), describe(item)] for key, item in value.items()]  # whose order matters: layers'
        case Iterable():
            return [describe(item) for item in value]
    raise UndescribedError(f"a {type(value).__name__}")


def _describe_tensor(tensor: Tensor) -> list[Any]:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise UndescribedError(f"a tensor of class {type(tensor).__name__}")
    kind = [str(tensor.dtype), str(tensor.device), str(tensor.layout)]
    return [*kind, list(tensor.shape), list(tensor.stride()), tensor.requires_grad, tensor.is_leaf]


def _describe_module(module: nn.Module) -> list[Any]:
    """A module with all that is inside of it; one that is met again is known by where it was met first."""
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
    """The name of a function or a class that is what its module has by this name."""
    found: Any = sys.modules.get(code.__module__)
    for part in code.__qualname__.split("."):
        found = getattr(found, part, None)
    if code.__module__.partition(".")[0] not in KNOWN or found is not code:
        raise UndescribedError(f"code of {code.__module__}.{code.__qualname__}")
    return f"{code.__module__}.{code.__qualname__}"


def check_functions() -> None:
    """Check that nobody has put functions of another package in the place of torch's.

    Raises:
        UndescribedError: If somebody has.
    """
    for name, function in vars(F).items():
        if isinstance(function, FunctionType) and function.__module__.partition(".")[0] != "torch":
            raise UndescribedError(f"torch.nn.functional.{name} of {function.__module__}")
