"""The command `cifar-lightning search`: trainings with options that Optuna draws."""

import shlex
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from cifar_lightning.cli.arguments import split_own_options
from cifar_lightning.cli.command import command
from cifar_lightning.cli.configs import find_config
from cifar_lightning.experiments.check import name_of
from cifar_lightning.experiments.results import make_table
from cifar_lightning.experiments.run import interruptible, quiet
from cifar_lightning.experiments.search.options import Options
from cifar_lightning.experiments.search.results import count_states
from cifar_lightning.experiments.search.search import Search

#: Rows of the table that is printed at the end.
SHOWN = 10


def make_parser() -> ArgumentParser:
    """The parser of a search's own options."""
    parser = ArgumentParser(
        prog="cifar-lightning search",
        description="Train with options that Optuna draws from a space. All options of cifar-lightning fit are taken "
        "too, and hold for all trials. The same command again goes on with the search.",
    )
    parser.add_class_arguments(Options)
    return parser


def main(args: list[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: With status 2 for a user's mistake or where nothing trains, 130 if interrupted.
    """
    own, fit = split_own_options(args)
    given = make_parser().parse_args(own).as_dict()
    with command(), quiet(), interruptible():
        options = Options(**given)
        folder = Path(options.out or Path("runs", "search", name_of(find_config(options.vary, "search"))))
        search = Search(fit, options, folder, "cifar-lightning search " + shlex.join(args))
        search.run()
    best_last = options.metric == "val_accuracy"
    results = sorted(search.results(), key=lambda result: result.best[options.metric], reverse=best_last)
    if results:
        Console().print(make_table(results[:SHOWN], results[0].name))
    print(f"{count_states(search.study)}; everything is in {folder}")
