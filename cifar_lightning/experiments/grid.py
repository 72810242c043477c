"""The options of `cifar-lightning fit` that vary: the grid of a study or a sweep, or the space of a search.

A grid is YAML, in a file or inline. Each entry is one of these:

model.activation: [relu, selu]                                 # a choice of values
n: [1, 2, 4]                                                   # a variable, for templates
model.hidden_sizes: "{n}x100"                                  # a template
optimizer:                                                     # a choice of settings, each with its name
  sgd: {model.optimizer: SGD, model.lr: 0.03}
  adam: {model.optimizer: Adam, model.lr: 3e-4}
model.lr: {type: float, low: 1e-5, high: 1e-3, log: true}      # a range, which only a search can sample
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cifar_lightning.cli.config_files import load_config
from cifar_lightning.cli.configs import find_config
from cifar_lightning.errors import refuse_more, unknown_name
from cifar_lightning.experiments.axis import Axis, Range, as_text, is_option, read_axis, word

#: Maximum length of a folder's name; file systems allow 255.
LONGEST_NAME = 100
#: The most combinations of a grid, and the most runs of a study or trials of a search.
MOST_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    """One combination.

    Args:
        name: Its name, also used for a folder.
        values: The values of the options that the point sets.
    """

    name: str
    values: dict[str, Any]

    @property
    def flags(self) -> list[str]:
        """The point as flags of `cifar-lightning fit`."""
        return flags(self.values)


@dataclass(frozen=True)
class Grid:
    """The options that vary and their values.

    Below, a draw has one value per axis, or for settings, their name.

    Args:
        axes: What varies independently: options, variables, or choices of settings.
        templates: By option, a string in which {variable} stands for the variable's value.
    """

    axes: dict[str, Axis]
    templates: dict[str, str]

    def __post_init__(self) -> None:
        self._check_variables()
        by: dict[str, str] = {}
        for option, name in self._entries():
            if option in by:
                raise ValueError(f"{option} may be varied by one entry only, got {by[option]} and {name}")
            by[option] = name

    @property
    def options(self) -> list[str]:
        """The options that are varied, as in "model.lr"."""
        return [option for option, _ in self._entries()]

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Each option with the axis or template that sets it."""
        for name, axis in self.axes.items():
            if isinstance(axis, dict):
                yield from ((option, name) for option in dict.fromkeys(itertools.chain(*axis.values())))
            elif is_option(name):
                yield name, name
        yield from ((name, name) for name in self.templates)

    def values(self, draw: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each option at a draw."""
        values: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if isinstance(axis, dict):
                values |= axis[draw[name]]
            elif is_option(name):
                values[name] = draw[name]
        for name, template in self.templates.items():
            values[name] = re.sub(r"\{(.*?)\}", lambda match: as_text(draw[match[1]]), template)
        return values

    def name(self, draw: Mapping[str, Any]) -> str:
        """A draw's name, such as "sgd,lr=0.1": settings by name, all else by the option's last part and its value."""
        varying = {name: axis for name, axis in self.axes.items() if isinstance(axis, Range) or len(axis) > 1}
        named = varying or self.axes
        shorts = [name.rpartition(".")[2] for name in named]
        parts = []
        for (name, axis), short in zip(named.items(), shorts, strict=True):
            label = short if shorts.count(short) == 1 else name
            value = f"{draw[name]:.4g}" if isinstance(axis, Range) else word(draw[name])
            parts.append(value if isinstance(axis, dict) else f"{label}={value}")
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(parts)).strip("._-") or "point"
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 9]}_{sha256(name.encode()).hexdigest()[:8]}"
        return name

    def points(self) -> list[Point]:
        """All combinations, the last axis varying fastest, with names of which no two are the same.

        Raises:
            ValueError: If there is a range in the grid, or it has more than `MOST_POINTS` combinations.
        """
        for name, axis in self.axes.items():
            if isinstance(axis, Range):
                raise ValueError(
                    f"{name} is a range, which only a search can sample: expected a list of values, such as "
                    f"{name}: [{axis.low}, {axis.high}], got numbers from {axis.low} to {axis.high}"
                )
        refuse_more(MOST_POINTS, math.prod(map(len, self.axes.values())), "combinations of a grid")  # type: ignore[arg-type]
        draws = [dict(zip(self.axes, draw, strict=True)) for draw in itertools.product(*self.axes.values())]  # type: ignore[arg-type]
        names = _distinct(map(self.name, draws))
        return [Point(name, self.values(draw)) for name, draw in zip(names, draws, strict=True)]

    def probes(self) -> Iterator[dict[str, Any]]:
        """A few draws that together include both ends of each range and each choice."""
        ends = {
            name: [axis.low, axis.high] if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()
        }
        for i in range(max(map(len, ends.values()))):
            yield {name: values[i % len(values)] for name, values in ends.items()}

    def check_names(self, known: Iterable[str]) -> None:
        """Check that the options exist. Arguments of classes depend on the class and are left to the parser.

        Args:
            known: The names of all options, such as "model.lr" and "model.optimizer.class_path".

        Raises:
            ValueError: If one does not exist; the message suggests the closest one.
        """
        names = list(known)
        for option in self.options:
            if any(name == option or name.startswith(f"{option}.") for name in names):
                continue
            if f"{option.rpartition('.')[0]}.class_path" in names:
                continue
            group = [name for name in names if name.startswith(f"{option.partition('.')[0]}.")]
            raise unknown_name("option to vary", option, group or ["model", "data", "trainer"])

    def _check_variables(self) -> None:
        """Check that templates name variables that exist, and that each variable is in a template."""
        variables = [name for name, axis in self.axes.items() if not is_option(name) and not isinstance(axis, dict)]
        used: set[str] = set()
        for name, template in self.templates.items():
            if re.search(r"[{}]", re.sub(r"\{.*?\}", "", template)):
                raise ValueError(f"wrong template of {name}: expected one such as '{{n}}x100', got {template!r}")
            for field in re.findall(r"\{(.*?)\}", template):
                if field not in variables:
                    raise unknown_name(f"variable in the template of {name}", field, variables)
                used.add(field)
        for name in variables:
            if name not in used:
                raise ValueError(
                    f"{name} has no effect: expected an option with a dot, such as model.lr, or a template with "
                    f"{{{name}}}, got neither"
                )


def flags(values: Mapping[str, Any]) -> list[str]:
    """Values by option as flags of `cifar-lightning fit`."""
    return [f"--{name}={as_text(value)}" for name, value in values.items()]


def read_grid(grid: str, folder: str = "grids") -> Grid:
    """Read a grid.

    Args:
        grid: A file, YAML itself, or the name of a shipped file.
        folder: The folder in which shipped files are looked up first.

    Raises:
        ValueError: If it is not a valid grid.
    """
    entries = load_config(find_config(grid, folder))
    if not isinstance(entries, dict) or not entries:
        raise ValueError(
            f"nothing to vary: expected a YAML file or entries such as {{model.lr: [1e-3, 1e-2]}}, got {grid!r}"
        )
    axes: dict[str, Axis] = {}
    templates: dict[str, str] = {}
    for name, entry in ((str(name), entry) for name, entry in entries.items()):
        if isinstance(entry, str) and "{" in entry and is_option(name):
            templates[name] = entry
        else:
            axes[name] = read_axis(name, entry)
    return Grid(axes, templates)


def _distinct(names: Iterable[str]) -> list[str]:
    """Number repeated names, ignoring case, since file systems may ignore it."""
    distinct: dict[str, str] = {}
    for name in names:
        number, different = 1, name
        while different.casefold() in distinct:
            number += 1
            different = f"{name}_{number}"
        distinct[different.casefold()] = different
    return list(distinct.values())
