"""The space of a search: which options of `lightning fit` vary and in what range, read from a YAML file.

n_hidden: {type: int, low: 1, high: 10}                            # a variable, for templates
model.hidden_sizes: "{n_hidden}x100"                               # a template
model.lr: {type: float, low: 1e-5, high: 1e-3, log: true}          # a number
model.activation: [relu, selu]                                     # a choice
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_lightning.errors import unknown_name

NUMBER_KEYS = ("type", "low", "high", "log", "step")
EXAMPLES = "{type: float, low: 1e-5, high: 1e-3, log: true}, a list of choices, or a template such as '{n}x100'"


@dataclass(frozen=True)
class SearchSpace:
    """What varies, and the flags that a point of it stands for.

    Args:
        distributions: What is drawn: an option's value, or, by a name without a dot, a variable.
        templates: By option, a text in which {variable} stands for a variable's value.
    """

    distributions: dict[str, BaseDistribution]
    templates: dict[str, str]

    @property
    def options(self) -> list[str]:
        """The options that vary, as in "model.lr"."""
        return [name for name in self.distributions if "." in name] + list(self.templates)

    def flags(self, point: Mapping[str, Any]) -> list[str]:
        """The flags of `lightning fit` for a value of each distribution."""
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in point.items()}
        flags = {name: text for name, text in texts.items() if "." in name}
        flags |= {
            name: re.sub(r"\{(.*?)\}", lambda match: texts[match[1]], template)
            for name, template in self.templates.items()
        }
        return [f"--{name}={text}" for name, text in flags.items()]

    def probes(self) -> Iterator[dict[str, Any]]:
        """A few points with both ends of each range, and each choice, among them."""
        ends = {
            name: list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]  # type: ignore[attr-defined]
            for name, d in self.distributions.items()
        }
        for i in range(max(map(len, ends.values()))):
            yield {name: values[i % len(values)] for name, values in ends.items()}

    def as_json(self) -> str:
        """The same text for the same space."""
        distributions = {name: repr(distribution) for name, distribution in self.distributions.items()}
        return json.dumps({"distributions": distributions, "templates": self.templates})


def read_space(path: Path) -> SearchSpace:
    """Read a space.

    Raises:
        ValueError: If it is none.
    """
    if not path.is_file():
        raise ValueError(f"no search space: expected a YAML file, received {str(path)!r}")
    entries = get_loader("yaml")(path.read_text())  # jsonargparse's, for which 1e-5 is a number
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"wrong search space {path}: expected entries such as model.lr: {EXAMPLES}; received none")
    distributions: dict[str, BaseDistribution] = {}
    templates: dict[str, str] = {}
    for name, entry in entries.items():
        match entry:
            case dict():
                distributions[name] = _number(name, entry)
            case list():
                distributions[name] = _choice(name, entry)
            case str() if "{" in entry and "." in str(name):
                templates[name] = entry
            case _:
                raise ValueError(f"wrong entry {name}: expected {EXAMPLES}; received {entry!r}")
    variables = [name for name in distributions if "." not in name]
    used = {variable for name, template in templates.items() for variable in _variables(name, template, variables)}
    for name in variables:
        if name not in used:
            raise ValueError(
                f"{name} varies nothing: expected an option with a dot, such as model.lr, or a template with "
                f"{{{name}}}; received neither"
            )
    return SearchSpace(distributions, templates)


def _number(name: str, entry: dict[str, Any]) -> BaseDistribution:
    for key in entry:
        if key not in NUMBER_KEYS:
            raise unknown_name(f"key of {name}", key, NUMBER_KEYS)
    values: Any = (entry.get(key) for key in NUMBER_KEYS)
    kind, low, high, log, step = values
    if kind not in ("int", "float"):
        raise ValueError(f"wrong type of {name}: expected int or float, received {kind!r}")
    types = (int,) if kind == "int" else (int, float)
    for key, value in (("low", low), ("high", high), *([("step", step)] if step is not None else [])):
        if type(value) not in types or not math.isfinite(value):
            raise ValueError(f"wrong {key} of {name}: expected a number of type {kind}, received {value!r}")
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
    if kind == "int":
        return IntDistribution(low, high, log=bool(log), step=step or 1)
    return FloatDistribution(low, high, log=bool(log), step=step)


def _choice(name: str, values: list[Any]) -> BaseDistribution:
    # (Optuna stores no lists and no objects.)
    choices = [value if isinstance(value, str | int | float) else json.dumps(value) for value in values]
    if not choices or len({repr(choice) for choice in choices}) < len(choices):
        raise ValueError(f"wrong choices of {name}: expected one or more, each once; received {values}")
    return CategoricalDistribution(choices)


def _variables(name: str, template: str, known: list[str]) -> list[str]:
    fields = re.findall(r"\{(.*?)\}", template)
    if re.search(r"[{}]", re.sub(r"\{.*?\}", "", template)):
        raise ValueError(f"wrong template of {name}: expected one such as '{{n}}x100', received {template!r}")
    for field in fields:
        if field not in known:
            raise unknown_name(f"variable in the template of {name}", field, known)
    return fields
