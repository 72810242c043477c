"""The entries of a grid: a list of values, settings by name, or a range of numbers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cifar_lightning.errors import unknown_name

EXAMPLES = (
    "a list of values, a template such as '{n}x100', settings by name such as {a: {model.lr: 0.1}}, or, in a search, "
    "{type: float, low: 1e-5, high: 1e-3, log: true}"
)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        type: "int" or "float".
        low: The lowest.
        high: The highest.
        log: Whether to sample on a logarithmic scale.
        step: The distance between values, on a linear scale; None for continuous values.
    """

    type: str
    low: float
    high: float
    log: bool = False
    step: float | None = None


Axis = Range | list[Any] | dict[str, dict[str, Any]]


def is_option(name: str) -> bool:
    """Whether a name is an option rather than a variable."""
    return "." in name or name == "seed_everything"


def as_text(value: Any) -> str:
    """A value as written after a flag."""
    return value if isinstance(value, str) else json.dumps(value)


def word(value: Any) -> str:
    """A short text for a value."""
    match value:
        case {"class_path": str(path), **rest}:
            arguments: Any = rest.get("init_args") or {}
            return "-".join([path.rpartition(".")[2], *([word(arguments)] if arguments else [])])
        case dict():
            return "-".join(f"{name}={word(each)}" for name, each in value.items())
        case list():
            return "-".join(map(word, value))
        case float():
            return f"{value:.10g}"
        case _:
            return as_text(value)


def read_axis(name: str, entry: Any) -> Axis:
    """Read the entry called `name`.

    Raises:
        ValueError: If it is not a valid entry.
    """
    match entry:
        case list():
            try:
                texts = {json.dumps(value) for value in entry}
            except (TypeError, ValueError):  # a set, a list that holds itself
                texts = set()
            if not entry or len(texts) < len(entry):
                raise ValueError(
                    f"wrong choices of {name}: expected one or more distinct numbers, strings, lists or mappings, "
                    f"got {entry}"
                )
            return entry
        case dict() if entry and not is_option(name) and all(isinstance(value, dict) for value in entry.values()):
            return _read_settings(name, entry)
        case dict():
            return _read_range(name, entry)
        case _:
            raise ValueError(f"wrong entry {name}: expected {EXAMPLES}; got {entry!r}")


def _read_settings(name: str, entry: dict[Any, dict[Any, Any]]) -> dict[str, dict[str, Any]]:
    for choice, settings in entry.items():
        for option in settings:
            if not is_option(str(option)):
                raise ValueError(
                    f"wrong settings {choice} of {name}: expected options with a dot, such as model.lr: 0.1, "
                    f"got {option}"
                )
    return {str(choice): settings for choice, settings in entry.items()}


def _read_range(name: str, entry: Mapping[Any, Any]) -> Range:
    keys = [field.name for field in fields(Range)]
    for key in entry:
        if key not in keys:
            raise unknown_name(f"key of {name}", key, keys)
    values: Any = map(entry.get, keys)
    kind, low, high, log, step = values
    if kind not in ("int", "float"):
        raise ValueError(f"wrong type of {name}: expected int or float, got {kind!r}")
    types = (int,) if kind == "int" else (int, float)
    for key in ("low", "high", *(["step"] if step is not None else [])):
        if type(entry.get(key)) not in types or not math.isfinite(entry[key]):
            raise ValueError(f"wrong {key} of {name}: expected a number of type {kind}, got {entry.get(key)!r}")
    if log not in (None, True, False):
        raise ValueError(f"wrong log of {name}: expected true or false, got {log!r}")
    if low >= high:
        raise ValueError(f"wrong range of {name}: expected low < high, got low {low}, high {high}")
    if log and low <= 0:
        raise ValueError(f"wrong range of {name}: expected low > 0 on a logarithmic scale, got low {low}")
    if step is not None and (log or step <= 0 or step > high - low):
        raise ValueError(
            f"wrong step of {name}: expected 0 < step <= high - low, on a linear scale; "
            f"got step {step}, low {low}, high {high}, log {bool(log)}"
        )
    return Range(kind, low, high, bool(log), step)
