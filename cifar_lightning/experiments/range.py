"""A range of numbers, from which a search draws: {type: float, low: 1e-5, high: 1e-3, log: true}."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cifar_lightning.errors import unknown_name


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        type: "int" or "float".
        low: The lowest.
        high: The highest.
        log: Whether numbers are drawn on a logarithmic scale.
        step: The distance between two of them, on a linear scale; None for any number.
    """

    type: str
    low: float
    high: float
    log: bool = False
    step: float | None = None


def read_range(name: str, entry: Mapping[Any, Any]) -> Range:
    """Read the range of what is called `name`.

    Raises:
        ValueError: If it is none.
    """
    keys = [field.name for field in fields(Range)]
    for key in entry:
        if key not in keys:
            raise unknown_name(f"key of {name}", key, keys)
    values: Any = map(entry.get, keys)
    kind, low, high, log, step = values
    if kind not in ("int", "float"):
        raise ValueError(f"wrong type of {name}: expected int or float, received {kind!r}")
    types = (int,) if kind == "int" else (int, float)
    for key in ("low", "high", *(["step"] if step is not None else [])):
        if type(entry.get(key)) not in types or not math.isfinite(entry[key]):
            raise ValueError(f"wrong {key} of {name}: expected a number of type {kind}, received {entry.get(key)!r}")
    if log not in (None, True, False):
        raise ValueError(f"wrong log of {name}: expected true or false, received {log!r}")
    if low >= high:
        raise ValueError(f"wrong range of {name}: expected low < high, received low {low}, high {high}")
    if log and low <= 0:
        raise ValueError(f"wrong range of {name}: expected low > 0 on a logarithmic scale, received low {low}")
    if step is not None and (log or step <= 0 or step > high - low):
        raise ValueError(
            f"wrong step of {name}: expected 0 < step <= high - low, on a linear scale; "
            f"received step {step}, low {low}, high {high}, log {bool(log)}"
        )
    return Range(kind, low, high, bool(log), step)
