"""Commands that inspect a run before its first step: `fit` with a callback that then stops it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from cifar_lightning.cli.command import command
from cifar_lightning.cli.main import CLI
from cifar_lightning.cli.own_parser import OwnParser


class CallbackCommand(NamedTuple):
    """A command whose own options are a callback's arguments, in addition to all options of `fit`.

    Args:
        name: The command's name.
        callback: The callback's class.
        description: What the command does.
        fixed: Arguments of the callback that the command sets.
    """

    name: str
    callback: type[Callback]
    description: str
    fixed: Mapping[str, Any]

    def make_parser(self) -> OwnParser:
        """The parser of the command's own options."""
        parser = OwnParser(
            command=self.name,
            description=f"{self.description} All options of cifar-lightning fit are accepted too, such as --config "
            "one_cycle or --model.lr 0.1; cifar-lightning fit --help lists them.",
        )
        parser.add_class_arguments(self.callback, skip=set(self.fixed))
        return parser

    def main(self, args: Sequence[str]) -> None:
        """Run the command.

        Raises:
            SystemExit: With status 2 on a user error, after one message.
        """
        with command():
            own, fit = self.make_parser().split(args)
            for word in fit:
                if word.partition("=")[0] == "--ckpt_path":
                    raise ValueError(f"{self.name} inspects a new run: expected no --ckpt_path, got {word}")
            CLI(["fit", *fit], callbacks=[self.callback(**own.as_dict(), **self.fixed)])
