"""The parser of a command with options of its own that also takes all options of `fit`."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from cifar_lightning.cli.arguments import FIT_OPTIONS, is_flag
from cifar_lightning.cli.configs import stray_word
from cifar_lightning.cli.parser import end


class OwnParser(ArgumentParser):
    """A parser that leaves unknown options to `fit` and reports a mistake in one line.

    Args:
        command: The command's name.
    """

    def __init__(self, *args: Any, command: str = "", **kwargs: Any) -> None:
        super().__init__(*args, prog=f"cifar-lightning {command}", allow_abbrev=False, **kwargs)
        self._command = command

    def split(self, arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Return the command's own options, parsed, and the words that are for `fit`.

        Raises:
            SystemExit: With status 2 on a mistake, after one line that says what is wrong.
        """
        names = {f"--{name}" for name in vars(self.get_defaults())}
        own: list[str] = []
        fit: list[str] = []
        part = own
        for word in arguments:
            if is_flag(word):
                name = word.partition("=")[0]
                part = own if name in names | {"--help", "-h"} else fit
                near = get_close_matches(name, names, n=1, cutoff=0.75)
                if part is fit and "." not in name and name not in FIT_OPTIONS and near:
                    end(f"{name} is not an option: did you mean {near[0]}?", self._command)
            part.append(word)
        return self.parse_args(own), fit

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report the error in one line and exit."""
        line = " ".join(message.split())
        if stray := re.fullmatch(r"unrecognized arguments: (.*)", line, re.IGNORECASE):
            line = stray_word(stray[1])
        end(line, self._command, ex)
