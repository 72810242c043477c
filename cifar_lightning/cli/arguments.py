"""The command line's arguments, spelt as a person would and read as jsonargparse does."""

import json

#: Options that take several values, one after another.
LIST_OPTIONS = {"--evaluation.ensemble", "--data.classes", "--data.images"}


def gather_lists(arguments: list[str]) -> list[str]:
    """Spell lists as jsonargparse takes them: `--data.images A B` as `--data.images=["A", "B"]`."""
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
            raise ValueError(f"{option} without a value: expected one or more, received none")
        if len(values) == 1 and values[0].startswith("["):
            gathered.append(f"{option}={values[0]}")
        else:
            gathered.append(f"{option}={json.dumps(values)}")
    return gathered


def _split_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The configs among the arguments, with their options, and the rest."""
    configs: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(arguments):
        taken = 2 if arguments[i] in ("--config", "-c") else 1
        part = arguments[i : i + taken]
        (configs if taken == 2 or part[0].startswith("--config=") else rest).extend(part)
        i += taken
    return configs, rest


def configs_first(arguments: list[str]) -> list[str]:
    """Put the configs before the flags, which then win wherever they stand."""
    configs, rest = _split_configs(arguments[1:])
    return [*arguments[:1], *configs, *rest]


def without_configs(arguments: list[str]) -> list[str]:
    """The arguments without their configs."""
    return [*arguments[:1], *_split_configs(arguments[1:])[1]]
