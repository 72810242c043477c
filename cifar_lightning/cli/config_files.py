"""Reads configs safely; each is a file or YAML itself."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

#: Maximum number of values in a config; a saved one has about a hundred. YAML aliases can stand for any number.
LARGEST = 100_000


def config_text(config: str) -> str:
    """The text of a config, which is a file or YAML itself."""
    try:
        return Path(config).read_text()
    except UnicodeDecodeError:
        raise ValueError(f"wrong config: expected a YAML file, got {config}, which is not a text file") from None
    except (OSError, ValueError):  # not a file, or not a possible file name
        return config


def load_config(config: str) -> Any:
    """The content of a config, which is a file or YAML itself. It is cached: do not change it.

    Raises:
        ValueError: If it is not YAML, or has too many values.
    """
    try:
        return _load(config_text(config))
    except ValueError as error:
        raise ValueError(f"wrong config: expected YAML, got {shorten(config)}, {error}") from None


def load_value(text: str) -> Any:
    """The value of a flag's text; the text itself if it is not YAML."""
    try:
        return _load(text)
    except ValueError:
        return text


def names_a_file(value: Any) -> bool:
    """Whether a group's value names a file of options, which may be relative to the config, rather than a class."""
    return isinstance(value, str) and (value.endswith((".yaml", ".yml", ".json")) or Path(value).is_file())


def shorten(text: str) -> str:
    """Shorten a text to one line of at most 80 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


@lru_cache(maxsize=64)
def _load(text: str) -> Any:
    try:
        content = get_loader("yaml")(text)
    except RecursionError:
        raise ValueError("which is nested too deeply") from None
    except Exception as error:  # the loader's own, whose class depends on what reads YAML
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ValueError(f"which is not: {shorten(problem)}{where}") from error
    _check_size(content)
    return content


def _check_size(content: Any) -> None:
    """Count the values of a config with aliases expanded.

    Raises:
        ValueError: If there are too many, or the config contains itself.
    """
    for count, _ in enumerate(_walk(content, ())):
        if count > LARGEST:
            raise ValueError(f"whose aliases stand for more than {LARGEST:,} values")


def _walk(value: Any, parents: tuple[int, ...]) -> Iterator[Any]:
    """The value and all values in it."""
    yield value
    if not isinstance(value, Mapping | list):
        return
    if id(value) in parents:
        raise ValueError("which contains itself")
    if len(parents) > 50:
        raise ValueError("which is nested too deeply")
    for item in value.values() if isinstance(value, Mapping) else value:
        yield from _walk(item, (*parents, id(value)))
