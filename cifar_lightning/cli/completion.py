"""The shell completion script of the whole command, for the shells that shtab supports."""

from collections.abc import Mapping

import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from shtab import SUPPORTED_SHELLS

from cifar_lightning.cli.main import CLI
from cifar_lightning.errors import unknown_name


class _ParsersMadeError(Exception):
    """Stops a command line once its parsers are made.

    Args:
        parsers: The parser of each subcommand.
    """

    def __init__(self, parsers: dict[str, ArgumentParser]) -> None:
        super().__init__()
        self.parsers = parsers


class _Parsers(CLI):
    """The command line of Lightning's subcommands, used only for its parsers."""

    def __init__(self) -> None:
        self.made: dict[str, ArgumentParser] = {}
        super().__init__([])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keep the parser: Lightning calls this once for each subcommand, in order."""
        super().add_arguments_to_parser(parser)
        self.made[list(self.subcommands())[len(self.made)]] = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse nothing."""
        raise _ParsersMadeError(self.made)


def trainer_parsers() -> dict[str, ArgumentParser]:
    """The parsers of fit, validate, test and predict."""
    try:
        _Parsers()
    except _ParsersMadeError as end:
        return end.parsers
    raise AssertionError("it ends where it would parse")


def with_options_of_fit(own: ArgumentParser) -> ArgumentParser:
    """A parser with a command's own options and those of `fit`."""
    return ArgumentParser(prog=own.prog, parents=[own, trainer_parsers()["fit"]], conflict_handler="resolve")


def completion_script(kind: str, helps: Mapping[str, str], parsers: Mapping[str, ArgumentParser]) -> str:
    """The script that completes the commands and the options of each.

    Args:
        kind: "shtab-bash", or the equivalent for another shell.
        helps: What each command does, in one line.
        parsers: The parser of each command; they are unusable afterwards.

    Raises:
        ValueError: If the kind is unknown.
    """
    kinds = [f"shtab-{shell}" for shell in SUPPORTED_SHELLS]
    if kind not in kinds:
        raise unknown_name("completion", kind, kinds)
    # Otherwise a tensor's arguments, some of them tensors, become options of --trainer.strategy: 20 MB per command.
    set_parsing_settings(subclasses_disabled=[torch.Tensor])
    parser = ArgumentParser(prog="cifar-lightning")
    subcommands = parser.add_subcommands()
    for name, text in helps.items():
        subcommands.add_subcommand(name, parsers[name], help=text)
    return parser.get_completion_script(kind)
