"""Drops the arguments of a class when an option replaces the class.

jsonargparse keeps arguments that the new class also takes: with `--model.optimizer AdamW` over a config with NAdam and
eps 1e-7, AdamW would get that eps.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from cifar_lightning.cli.arguments import CommandLine
from cifar_lightning.optim import schedules
from cifar_lightning.optim.class_paths import default_arguments, find_class
from cifar_lightning.optim.schedule import Schedule

#: Options that name a class, each with the base of its classes and the module of their short names.
OPTIONS = {"model.optimizer": (Optimizer, "torch.optim"), "model.schedule": (Schedule, schedules.__name__)}


def drop_arguments_of_other_classes(config: Namespace, line: CommandLine) -> None:
    """Remove arguments from the parsed options of a subcommand that were given for a class since replaced.

    Arguments that nobody gave get the present class's defaults: jsonargparse copies those of the option's default class
    where both take an argument of that name, and AdamW would get NAdam's weight decay of 0.
    """
    for option, (base, namespace) in OPTIONS.items():
        value = config.get(option)
        arguments = value.get("init_args") if isinstance(value, Namespace) else None
        if not isinstance(arguments, Namespace):
            continue
        replaced, stale, given = _sort_arguments(_statements(option, line))
        dropped = {name: arguments.pop(name) for name in sorted(stale) if name in arguments}
        defaults = default_arguments(find_class(value["class_path"], base, namespace))
        for name in set(vars(arguments)) - given:
            if name in defaults:
                arguments[name] = defaults[name]
            else:
                arguments.pop(name)
        if dropped:
            said = ", ".join(f"{name} = {value}" for name, value in dropped.items())
            rank_zero_info(f"{option} is no longer {replaced}: its {said} is dropped")


def _sort_arguments(statements: Iterable[tuple[str, set[str]]]) -> tuple[str, set[str], set[str]]:
    """The class that was replaced last, the arguments given for such classes alone, and those for the present one."""
    present, replaced = "", ""
    given: set[str] = set()
    stale: set[str] = set()
    for name, arguments in statements:
        if name and present and name != present:
            replaced, stale, given = present, stale | given, set()
        present = name or present
        given |= arguments
        stale -= arguments
    return replaced, stale, given


def _statements(option: str, line: CommandLine) -> Iterator[tuple[str, set[str]]]:
    """What configs and flags say of the option, in their order: a class's name or "", and names of arguments."""
    for below, value in line.statements(option):
        if below in ("", "class_path"):
            yield _statement(value)
        else:
            yield "", {below.removeprefix("init_args.")}


def _statement(value: Any) -> tuple[str, set[str]]:
    if isinstance(value, Mapping):
        return _short(value.get("class_path")), set(value.get("init_args") or {})
    return _short(value), set()


def _short(path: Any) -> str:
    return str(path or "").rpartition(".")[2]
