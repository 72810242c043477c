"""Checks class names and arguments in options, since jsonargparse's own messages say less."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch import nn
from torch.optim import Optimizer

from cifar_lightning.cli.arguments import CommandLine
from cifar_lightning.cli.config_files import names_a_file
from cifar_lightning.cli.own_classes import import_class
from cifar_lightning.errors import unknown_name
from cifar_lightning.nn.layers import ACTIVATIONS
from cifar_lightning.nn.mlp import parse_hidden_sizes
from cifar_lightning.optim.class_paths import optimizer_component, schedule_component
from cifar_lightning.optim.schedule import Schedule

#: Options that take classes, with their base class.
KINDS: dict[str, type] = {
    "model.activation": nn.Module,
    "model.optimizer": Optimizer,
    "model.schedule": Schedule,
    "trainer.accelerator": Accelerator,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
    "trainer.plugins": object,  # of several kinds
    "trainer.profiler": Profiler,
    "trainer.strategy": Strategy,
}
#: Options that take one of a few names.
NAMES: dict[str, list[str]] = {
    "model.activation": list(ACTIVATIONS),
    "trainer.accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    "trainer.profiler": ["simple", "advanced", "pytorch", "xla"],
    "trainer.strategy": ["auto", *StrategyRegistry.available_strategies()],
}
#: Functions that check an option's class and arguments, and the option's default class.
COMPONENTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model.optimizer": (optimizer_component, "NAdam"),
    "model.schedule": (schedule_component, "Constant"),
}


def check_classes(line: CommandLine, our_model: bool) -> None:
    """Check the classes, names and class arguments in a command line; import the user's own classes.

    Args:
        line: The command line.
        our_model: Whether the model is an `MLPClassifier`; the options of another model are unknown.

    Raises:
        ValueError: If a class does not exist or does not take an argument.
    """
    options = [option for option in KINDS if our_model or not option.startswith("model.")]
    for option, names in NAMES.items():
        if option not in options:
            continue
        # torch has many modules, and activations have names of their own.
        classes = {} if option == "model.activation" else _subclasses(KINDS[option])
        for rest, value in line.statements(option):
            is_name = not rest and isinstance(value, str) and "." not in value
            if is_name and value.lower() not in names and value not in classes:
                raise unknown_name(f"--{option}", value, names)
    for rest, value in line.statements("model.hidden_sizes"):
        if our_model and not rest and isinstance(value, str):
            parse_hidden_sizes(value)
    for option in options:
        _check_classes_of(option, line)


def _check_classes_of(option: str, line: CommandLine) -> None:
    present: str | None = COMPONENTS[option][1] if option in COMPONENTS else None
    for rest, value in line.statements(option):
        argument = rest.removeprefix("init_args.").partition(".")[0]
        if argument in ("", "class_path"):
            for path, arguments in _components(value, option):
                present = path or present
                _check_class(option, present, arguments)
        elif argument not in ("help", "dict_kwargs"):
            _check_class(option, present, [argument])


def _check_class(option: str, path: str | None, arguments: list[str]) -> None:
    """Check one class and the names of its arguments."""
    kind = KINDS[option]
    if path is None or path in NAMES.get(option, ()) or names_a_file(path):  # which holds the option's value
        return
    if kind is object and "." not in path:
        return  # jsonargparse's business
    cls = import_class(path, kind, f"--{option}") if "." in path else _subclasses(kind).get(path)
    if option in COMPONENTS:
        try:
            COMPONENTS[option][0]({"class_path": path, "init_args": dict.fromkeys(arguments)})
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from error
    elif cls is not None:
        parameters = inspect.signature(cls).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        for argument in arguments:
            if not takes_any and argument not in parameters:
                raise unknown_name(f"argument of {cls.__name__} (--{option})", argument, parameters)
    elif option not in NAMES:
        near = get_close_matches(path, _subclasses(kind), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown --{option}: expected the name of a {kind.__name__} or the import path of your own, "
            f"got {path!r}{hint}"
        )


def _components(value: Any, option: str) -> Iterator[tuple[str | None, list[str]]]:
    """The classes in a value, None for the current one, each with the names of its arguments."""
    if isinstance(value, str):
        yield value, []
    elif isinstance(value, Mapping):
        keys = ["class_path", "init_args", "dict_kwargs"]
        for key in value:
            if key not in keys:
                raise unknown_name(f"key of --{option}", key, keys)
        if not isinstance(value.get("class_path", ""), str) or not isinstance(value.get("init_args") or {}, Mapping):
            raise ValueError(f"wrong --{option}: expected a class_path and a mapping init_args, got {value}")
        yield value.get("class_path"), list(value.get("init_args") or {})
    elif isinstance(value, list):
        for item in value:
            yield from _components(item, option)


def check_stored_classes(stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Import the user's own classes that a checkpoint's options name.

    Raises:
        ValueError: If one can't be imported.
    """
    for option in KINDS:
        group, name = option.split(".")
        for path, _ in _components(stored.get(group, {}).get(name), option):
            if path is not None and "." in path:
                import_class(path, KINDS[option], f"--{option}")


def _subclasses(kind: type) -> dict[str, type]:
    """All subclasses of a class that have been imported, by name."""
    found: dict[str, type] = {}
    direct: list[type] = kind.__subclasses__()
    for cls in direct:
        if not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
        found |= _subclasses(cls)
    return found
