"""Checks of many runs before the first one starts."""

import io
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from cifar_lightning.cli.arguments import CommandLine, gather_lists
from cifar_lightning.cli.main import CLI
from cifar_lightning.cli.own_classes import GROUPS
from cifar_lightning.experiments.axis import as_text
from cifar_lightning.experiments.grid import Grid, flags

#: Options of `cifar-lightning fit` that do not work for many runs, each with what to use instead.
REFUSED = {
    "ckpt_path": "none, since stopped runs resume automatically",
    "trainer.default_root_dir": "--out",
    "trainer.fast_dev_run": "runs that can be compared",
}


class _Parsed(CLI):
    """Parse command lines, and check what can be checked without training."""

    def instantiate_classes(self) -> None:
        for group, (ours, _) in GROUPS.items():
            if self.classes[group] is ours:  # of other classes, arguments may be objects that are still to be built
                ours(**self._options_of(group))
        self.subcommand = None  # Lightning then runs nothing

    def check(self, arguments: list[str]) -> None:
        """Check other arguments with the same parser, which is slow to make."""
        self.line = CommandLine(gather_lists(arguments), LightningCLI.subcommands())
        self.ckpt_path = None
        self.parse_arguments(self.parser, arguments)
        self.instantiate_classes()


def check(arguments: Sequence[str], grid: Grid | None, what: str) -> dict[str, Any]:
    """Check the options that several runs share, and a few points of a grid that together include each of its values.

    Args:
        arguments: The arguments of `cifar-lightning fit`.
        grid: The grid; None for none.
        what: A description of the arguments, for messages.

    Returns:
        The shared options by name, as in "model.lr" or "model.optimizer.eps".

    Raises:
        ValueError: If an option does not exist, or the network or the data can't be built.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each run warns for itself
        with _naming(what):
            cli = _Parsed(["fit", *arguments])
        options = options_by_name(cli.subconfig)
        refuse({name: options[name] for name in REFUSED if options[name]}, {})
        if grid is not None:
            grid.check_names(options)
            refuse_given(grid, arguments)
            for draw in grid.probes():
                point = flags(grid.values(draw))
                with _naming(f"{what} with {' '.join(point)}"):
                    cli.check(["fit", *arguments, *point])
    return options


def options_by_name(config: Namespace) -> dict[str, Any]:
    """The options of a command, as in "model.lr" or "model.optimizer.eps"."""
    return {name.replace(".init_args", ""): value for name, value in vars(config.as_flat()).items()}


def refuse_given(grid: Grid, arguments: Sequence[str]) -> None:
    """Reject arguments of `lightning fit` that set an option of the grid.

    Raises:
        ValueError: If there are any.
    """
    given = given_flags(arguments)
    for name in grid.options:
        if name in given:
            raise ValueError(f"--{name} is varied and cannot be set as well, got {given[name]}")


def one_device(options: Mapping[str, Any], what: str, reason: str) -> Any:
    """The value for `--trainer.devices`: one device, since "auto" would start a process for each GPU.

    Args:
        options: The options by name.
        what: The command, for messages.
        reason: Why it uses one device, for messages.

    Raises:
        ValueError: If several devices are requested.
    """
    devices, nodes = options["trainer.devices"], options["trainer.num_nodes"]
    if devices not in ("auto", 1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise ValueError(f"--trainer.devices must be 1 in a {what}, since {reason}; got {devices}")
    if nodes != 1:
        raise ValueError(f"--trainer.num_nodes must be 1 in a {what}, got {nodes}")
    return 1 if devices == "auto" else devices


def refuse(given: Mapping[str, Any], more: Mapping[str, str]) -> None:
    """Reject options that do not work for many runs.

    Args:
        given: Values by option.
        more: Further options that a command rejects, like `REFUSED`.

    Raises:
        ValueError: If there are any.
    """
    for name, expected in (REFUSED | dict(more)).items():
        if name in given:
            dashes = "-" if len(name) == 1 else "--"
            raise ValueError(f"{dashes}{name} does not work for many runs: use {expected}; got {as_text(given[name])}")


def name_of(text: str) -> str:
    """The name of a YAML file, such as "selu"; "inline" for YAML itself."""
    return Path(text).stem if os.path.isfile(text) else "inline"


def given_flags(words: Sequence[str]) -> dict[str, str]:
    """Values by option on a command line."""
    flags: dict[str, str] = {}
    for word, after in itertools.pairwise([*words, ""]):
        name, has_value, value = word.lstrip("-").partition("=")
        if word.startswith("-"):
            flags[name] = value if has_value else after
    return flags


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn errors, including those the parser prints, into a ValueError that says what it is about."""
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            yield
    except SystemExit:
        raise ValueError(f"{what}: {said.getvalue().partition('error: ')[2].strip()}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{what}: {error}") from error
