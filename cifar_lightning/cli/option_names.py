"""Checks that every name on a command line and in configs is an option's full name."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.cli.arguments import CONFIG_OPTIONS, CommandLine, is_flag, pair_flags
from cifar_lightning.cli.config_files import names_a_file, shorten
from cifar_lightning.cli.configs import stray_word
from cifar_lightning.cli.own_classes import flatten, without_classes
from cifar_lightning.cli.suggestions import suggest


class OptionNames:
    """The names of a command's options.

    Args:
        names: All names, without dashes.
        owners: The user's own classes by group, which the options belong to.
    """

    def __init__(self, names: Iterable[str], owners: Mapping[str, str]) -> None:
        self.names = dict.fromkeys(names)  # in order
        self.owners = owners
        self._groups = {name.rpartition(".")[0] for name in names if not name.endswith(".help")} - {""}

    def check(self, line: CommandLine) -> None:
        """Check that all keys of configs and all flags are options, and that flags come after the command.

        Raises:
            ValueError: If one is not; the message suggests the right option.
        """
        for flag, _ in pair_flags(line.head[:-1]):
            if is_flag(flag) and flag not in (*CONFIG_OPTIONS, "-h", "--help", "--print_config"):
                raise ValueError(f"{flag} must come after {line.head[-1]}, got it before")
        for config, content in line.contents():
            self.check_config(config if Path(config).is_file() else "--config", flatten(content))
        self.check_flags(without_classes(line.flags))

    def check_flags(self, words: Iterable[str]) -> None:
        """Check that the flags among the words after a command are options.

        Raises:
            ValueError: If one is not; the message suggests the right option.
        """
        for flag, value in pair_flags(words):
            if not is_flag(flag):
                raise ValueError(stray_word(shorten(flag)))
            name = flag.lstrip("-")
            if flag not in ("-h", *CONFIG_OPTIONS) and not (flag.startswith("--") and self._has(name)):
                raise ValueError(f"{flag} is not an option{self._owner(name)}{suggest(name, value, self.names)}")

    def check_config(self, config: str, content: Any) -> None:
        """Check that the keys of a config are options.

        Args:
            config: The config's file, or another name for it.
            content: Its content.

        Raises:
            ValueError: If a key is not an option; the message suggests the right one.
        """
        if content is None:  # an empty file, or only comments
            return
        if not isinstance(content, Mapping):
            raise ValueError(f"{config}: expected options and their values in YAML, got {shorten(str(content))}")
        for name, value in self._walk(content):
            if not self._has(name):
                hint = suggest(name, value, self.names, in_config=True)
                raise ValueError(f"{config}: {name} is not an option{self._owner(name)}{hint}")
            if name in self._groups and not isinstance(value, Mapping) and not names_a_file(value):
                received = "null" if value is None else shorten(str(value))
                raise ValueError(f"{config}: {name} is a group of options: expected a mapping, got {received}")

    def nulls(self, line: CommandLine) -> list[str]:
        """The options that configs set to null."""
        contents = [flatten(content) for _, content in line.contents()]
        return [name for content in contents for name, value in self._walk(content or {}) if value is None]

    def _walk(self, content: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        """The names and values in a config, of groups and of their options."""
        for key, value in content.items():
            name = f"{above}{key}"
            yield name, value
            if name in self._groups and isinstance(value, Mapping):
                yield from self._walk(value, f"{name}.")

    def _has(self, name: str) -> bool:
        """Whether it is an option, or an argument of one that takes a class, such as trainer.callbacks.monitor."""
        if name in self.names or name in self._groups:
            return True
        above = name.rpartition(".")[0]
        return bool(above) and above not in self._groups and self._has(above)

    def _owner(self, name: str) -> str:
        owner = self.owners.get(name.partition(".")[0])
        return f" of {owner}" if owner else ""
