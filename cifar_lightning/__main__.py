"""One command for everything: `cifar-lightning`, which is also `lightning` and `python -m cifar_lightning`.

Slow imports wait until the command is known.
"""

import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from cifar_lightning import __version__
from cifar_lightning.cli.mistakes import one_message
from cifar_lightning.errors import unknown_name
from cifar_lightning.extras import missing_modules, require

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class Command(NamedTuple):
    """A command.

    Args:
        help: What it does, in one line.
        module: The module of this package that implements it, with `make_parser()` and `main(args)`.
        extra: The extra that it needs.
        trains: Whether it also takes the options of `fit`.
    """

    help: str
    module: str
    extra: str = ""
    trains: bool = True


#: The module of Lightning's own commands, whose parser takes the command's name as well.
TRAINER = "cli.main"
COMMANDS = {
    "fit": Command("train a network", TRAINER),
    "validate": Command("evaluate a trained network on the validation images", TRAINER),
    "test": Command("evaluate a trained network on the test images", TRAINER),
    "predict": Command("classify the test images, or your own, with a trained network", TRAINER),
    "find-lr": Command("find a learning rate with a range test", "cli.find_lr"),
    "sweep": Command("train one network per combination of values, all at once", "experiments.sweep.command"),
    "search": Command("search for the best options with Optuna", "experiments.search.command", "search"),
    "study": Command("train configs with several seeds and compare them", "experiments.study.command", "study"),
    "signals": Command("plot activations and gradients by layer, before training", "cli.signals"),
    "plot-schedule": Command("plot the learning rate of a run, step by step", "cli.plot_schedule"),
    "training-images": Command("show training images with their augmentation", "cli.training_images"),
    "export": Command("export a trained network for other programs", "cli.export", trains=False),
    "configs": Command("list the configs that come with the package, or print one", "cli.configs", trains=False),
    "doctor": Command("check versions, devices, data and folders, and suggest fixes", "cli.doctor", trains=False),
}
#: Options before the command that take a value.
HEAD_OPTIONS = ("--config", "-c", "--print_completion")


def main() -> None:
    """Run the command line of this process."""
    run(sys.argv[1:])


def lightning() -> None:
    """Run our commands, and pass all others to lightning-sdk, which installs a script of the same name."""
    _, name, _ = split(sys.argv[1:])
    if name and name not in COMMANDS and find_spec("lightning_sdk") is not None:
        from lightning_sdk.cli.entrypoint import main_cli

        main_cli()
    else:
        main()


def run(arguments: Sequence[str]) -> None:
    """Run a command line.

    Raises:
        SystemExit: With status 2 on a user error, after one message; with 130 on Ctrl-C.
    """
    head, name, rest = split(arguments)
    try:
        with one_message():
            if not name or head[:1] in (["--help"], ["-h"], ["--version"]):
                _without_command(head)
                return
            if name not in COMMANDS:
                raise _unknown_command(name)
            if COMMANDS[name].extra:
                require(COMMANDS[name].extra)
        args = [*head, name, *rest] if COMMANDS[name].module == TRAINER else [*head, *rest]
        _module(name).main(args)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Split into the words before the command, the command ("" for none), and the words after it."""
    i = 0
    while i < len(arguments) and arguments[i].startswith("-"):
        i += 2 if arguments[i] in HEAD_OPTIONS else 1
    return list(arguments[:i]), arguments[i] if i < len(arguments) else "", list(arguments[i + 1 :])


def _unknown_command(name: str) -> ValueError:
    """The error for a word that is not a command; if it is a config's name, suggest training it."""
    from cifar_lightning.cli.configs import shipped_names

    error = unknown_name("command", name, COMMANDS)
    return ValueError(f"{error}: did you mean fit --config {name}?") if name in shipped_names() else error


def _without_command(head: list[str]) -> None:
    """Handle options without a command."""
    option, _, value = (head or ["--help"])[0].partition("=")
    match option:
        case "--help" | "-h":
            print(usage())
        case "--version":
            print(f"cifar-lightning {__version__}")
        case "--print_completion":
            _print_completion(value or "".join(head[1:2]))
        case _:
            raise ValueError(f"no command: expected one of {', '.join(COMMANDS)}; got {' '.join(head)}")


def usage() -> str:
    """The help text: all commands, with one line each."""
    commands = "\n".join(f"  {name:17}{command.help}" for name, command in COMMANDS.items())
    text = """\
        usage: cifar-lightning COMMAND [OPTIONS]

        A deep multilayer perceptron for CIFAR-10, in PyTorch Lightning.

        {commands}

        cifar-lightning COMMAND --help lists a command's options. To get started:

          cifar-lightning fit --config one_cycle
          cifar-lightning test --config one_cycle --ckpt_path best

        --version                                   print the version
        --print_completion shtab-bash, shtab-zsh    print a completion script"""
    return textwrap.dedent(text).format(commands=commands)


def _print_completion(kind: str) -> None:
    from cifar_lightning.cli.completion import completion_script, trainer_parsers, with_options_of_fit

    parsers = trainer_parsers()
    for name, command in COMMANDS.items():
        if command.module == TRAINER or (command.extra and missing_modules(command.extra)):
            continue
        own: ArgumentParser = _module(name).make_parser()
        parsers[name] = with_options_of_fit(own) if command.trains else own
    print(completion_script(kind, {name: COMMANDS[name].help for name in COMMANDS if name in parsers}, parsers))


def _module(name: str) -> Any:
    return import_module(f"cifar_lightning.{COMMANDS[name].module}")


if __name__ == "__main__":
    main()
