"""The parser of the commands' options: full names only, one-line errors, and help without unusable choices."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from cifar_lightning.cli.arguments import CommandLine
from cifar_lightning.cli.class_checks import check_classes
from cifar_lightning.cli.class_options import drop_arguments_of_other_classes
from cifar_lightning.cli.mistakes import DEBUG_VARIABLE
from cifar_lightning.cli.option_names import OptionNames
from cifar_lightning.cli.own_classes import GROUPS
from cifar_lightning.cli.parse_errors import explain
from cifar_lightning.optim.class_paths import UNSUITABLE_OPTIMIZERS, public_path
from cifar_lightning.optim.joined import JoinedOptimizer


class Parser(LightningArgumentParser):
    """The parser of one command.

    The context of error messages is stored on the class: jsonargparse makes more parsers, for the arguments of classes.

    Attributes:
        command: The command's name; "" for none.
        known: The names of its options.
        flags: The words of the command line.
        line: The command line, once it has been checked; None in the parsers of classes.
        has_our_model: Whether the model is an `MLPClassifier`.
        class_paths: The user's own classes by group, which a printed or saved config must name.
        needed: Options without a default, which a checkpoint may give.
    """

    command: ClassVar[str] = ""
    known: ClassVar[list[str]] = []
    flags: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.line: CommandLine | None = None
        self.has_our_model = True
        self.class_paths: dict[str, str] = {}
        self.needed: list[str] = []

    def add_own_classes(self, class_paths: dict[str, str]) -> None:
        """Register the user's own classes; a checkpoint may provide options that have no default.

        Args:
            class_paths: Import paths of the user's own classes, by group.
        """
        self.class_paths = class_paths
        for group, (_, kind) in GROUPS.items():
            if action := self._option_string_actions.get(f"--{group}"):  # a class without options has none
                action.metavar = "CLASS"
                action.help = (
                    f"Import path of your own {kind.__name__}, such as my.module.MyClass; or a file of options below"
                )
        for action in self._actions:
            if action.required and action.dest.partition(".")[0] in class_paths:
                action.required = False
                self.needed.append(action.dest)

    def check_needed(self, config: Namespace) -> None:
        """Check that the config has all needed options, or exit with one line."""
        for option in self.needed:
            if config.get(option) is None:
                owner = self.class_paths[option.partition(".")[0]]
                self.error(f"--{option} is missing: it needs a value, since {owner} has no default for it")

    def check(self, line: CommandLine, parsers: Mapping[str, Any]) -> None:
        """Check the options and classes of a command line, or exit with one line.

        Args:
            line: The command line.
            parsers: The parser of its subcommand, by name, or of all subcommands if it names none.
        """
        Parser.command, Parser.flags = next(iter(parsers)) if len(parsers) == 1 else "", line.flags
        if not Parser.command:
            return
        parser = parsers[Parser.command]
        parser.line = line
        Parser.known = parser.options
        try:
            names = OptionNames(parser.options, parser.class_paths)
            names.check(line)
            check_classes(line, parser.has_our_model)
        except ValueError as error:
            self.error(str(error), error)
        if nulls := names.nulls(line):  # which jsonargparse lets through in a config
            parser.parse_args([f"--{option}=null" for option in nulls], defaults=False)

    @property
    def options(self) -> list[str]:
        """The names of all options, without dashes; an option that takes a list also has a name ending in +."""
        return [name.lstrip("-") for name in self._option_string_actions if name.startswith("--")]

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help text, without optimizers that are rejected, or that join those of a sweep."""
        paths = [f"torch.optim.{name}" for name in ("Optimizer", *UNSUITABLE_OPTIMIZERS)]
        names = "|".join(map(re.escape, [*paths, public_path(JoinedOptimizer)]))
        text = re.sub(rf"({names}),\s*", "", super().format_help(*args, **kwargs))
        return re.sub(rf",\s*({names})\)", ")", text)

    def dump(self, config: Namespace, **kwargs: Any) -> str:
        """The config as YAML, as `fit` would use it, and with a user's own class among its options."""
        if self.line is not None and self.has_our_model:  # --print_config comes here straight from parsing
            config = config.clone()
            drop_arguments_of_other_classes(config, self.line)
        text: str = super().dump(config, **kwargs)
        for group, path in self.class_paths.items():
            named = f"{group}:\n  class_path: {path}\n"
            begins = re.compile(rf"^{group}:( \{{\}}| null)?\n", re.MULTILINE)
            text = begins.sub(named, text, count=1) if begins.search(text) else text + named
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error in one line and exit with status 2."""
        end(explain(message, self.flags, self.known), self.command, ex)


def end(message: str, command: str, error: Exception | None = None) -> NoReturn:
    """Exit because of a wrong command line, with one line that refers to the command's help.

    Args:
        message: What is wrong.
        command: The command's name; "" for none.
        error: The original error, which is raised if the user wants the traceback.

    Raises:
        SystemExit: With status 2.
    """
    if os.environ.get(DEBUG_VARIABLE) and error is not None:
        raise error
    help_of = " ".join(["cifar-lightning", *command.split(), "--help"])
    print(f"error: {message} (see {help_of})", file=sys.stderr)
    raise SystemExit(2)
