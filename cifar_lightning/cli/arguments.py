"""The command line's arguments: written as people would, and converted to what jsonargparse expects."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cifar_lightning.cli.config_files import load_config, load_value
from cifar_lightning.cli.configs import find_config

#: Options that take several values, one after another.
LIST_OPTIONS = {"--evaluation.ensemble", "--data.classes", "--data.images"}
CONFIG_OPTIONS = ("--config", "-c")
#: Options of `cifar-lightning fit` that have no dot.
FIT_OPTIONS = {*CONFIG_OPTIONS, "--seed_everything", "--ckpt_path", "--trainer", "--model", "--data"}


def gather_lists(arguments: list[str]) -> list[str]:
    """Write lists as jsonargparse expects them: `--data.images A B` as `--data.images=["A", "B"]`."""
    gathered: list[str] = []
    i = 0
    while i < len(arguments):
        option, _, value = arguments[i].partition("=")
        i += 1
        if option not in LIST_OPTIONS or value.startswith("["):
            gathered.append(arguments[i - 1])
            continue
        values = [value] if value else []
        while i < len(arguments) and not arguments[i].startswith("--"):
            values.append(arguments[i])
            i += 1
        if not values:
            raise ValueError(f"{option} needs one or more values, got none")
        if len(values) == 1 and values[0].startswith("["):
            gathered.append(f"{option}={values[0]}")
        else:
            gathered.append(f"{option}={json.dumps(values)}")
    return gathered


class CommandLine:
    """The arguments of a command, with configs and flags separated. Flags take precedence wherever they are.

    Args:
        arguments: The arguments, after `gather_lists`.
        subcommands: The known subcommands.
    """

    def __init__(self, arguments: list[str], subcommands: Iterable[str]) -> None:
        known = set(subcommands)
        pairs = enumerate(zip(["", *arguments], arguments, strict=False))  # each word after the one before it
        positions = (i for i, (before, word) in pairs if word in known and before not in CONFIG_OPTIONS)
        end = next(positions, len(arguments)) + 1
        configs, head = _split_configs(arguments[:end])
        #: The words up to and including the subcommand. Configs here have their options under the subcommand's name.
        self.head = [*_as_options(configs), *head]
        self._configs, self.flags = _split_configs(arguments[end:])

    @property
    def configs(self) -> list[str]:
        """The configs, each a file or YAML itself."""
        return _split_configs(self.head)[0] + self._configs

    def add_config(self, config: str) -> None:
        """Add a config."""
        self._configs.append(config)

    @property
    def arguments(self) -> list[str]:
        """All arguments, the configs first."""
        return [*self.head, *_as_options(self._configs), *self.flags]

    @property
    def without_configs(self) -> list[str]:
        """The subcommand and its flags."""
        return [*self.head[-1:], *self.flags]

    def contents(self) -> Iterator[tuple[str, Any]]:
        """Each config, with its options; in a config before the subcommand, they are under the subcommand's name."""
        for config in _split_configs(self.head)[0]:
            content = load_config(config)
            yield config, content.get(self.head[-1]) if isinstance(content, Mapping) else content
        for config in self._configs:
            yield config, load_config(config)

    def statements(self, option: str) -> Iterator[tuple[str, Any]]:
        """The settings of an option or of what is below it, first in configs, then in flags.

        Each is the rest of the name, such as "init_args.eps", and a value. Additions to a list, with a name that ends
        in +, count too.
        """
        *groups, last = option.split(".")
        for _, content in self.contents():
            for group in groups:
                content = content.get(group) if isinstance(content, Mapping) else None
            for name in (last, f"{last}+"):
                if isinstance(content, Mapping) and name in content:
                    yield "", content[name]
        for name, value in pair_flags(self.flags):
            rest = name.removeprefix(f"--{option}")
            if name.startswith(f"--{option}") and rest[:1] in ("", ".", "+"):
                yield rest.removeprefix("+").removeprefix("."), load_value(value)

    def value_of(self, option: str) -> Any:
        """The last value of an option; None if it is not set."""
        *_, value = [None, *(value for rest, value in self.statements(option) if not rest)]
        return value


def pair_flags(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The flags among the words, each with its value or ""; a word that belongs to no flag comes with ""."""
    name = ""
    for word in words:
        if is_flag(word):
            if name:
                yield name, ""
            name, has_value, value = word.partition("=")
            if has_value:
                yield name, value
                name = ""
        else:
            yield (name, word) if name else (word, "")
            name = ""
    if name:
        yield name, ""


def is_flag(word: str) -> bool:
    """Whether a word is a flag rather than a value such as -1 or -.5."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _as_options(configs: Iterable[str]) -> list[str]:
    return [f"--config={config}" for config in configs]


def _split_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into configs, with shipped ones as their files, and the rest."""
    configs: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        option, has_value, value = word.partition("=")
        if option in CONFIG_OPTIONS:
            value = value if has_value else next(words, "")
            if not value:
                raise ValueError(f"{option} needs a value: expected a YAML file, got none")
            configs.append(find_config(value))
        else:
            rest.append(word)
    return configs, rest
