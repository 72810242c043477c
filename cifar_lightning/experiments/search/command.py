"""The command `cifar-lightning search`: hyperparameter search with Optuna."""

import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from cifar_lightning.callbacks.run_folder import say_where
from cifar_lightning.cli.command import command
from cifar_lightning.cli.configs import find_config
from cifar_lightning.cli.own_parser import OwnParser
from cifar_lightning.experiments.check import name_of
from cifar_lightning.experiments.results import Result, make_table
from cifar_lightning.experiments.run import interruptible, quiet
from cifar_lightning.experiments.search.options import Options
from cifar_lightning.experiments.search.pictures import PICTURES
from cifar_lightning.experiments.search.results import count_states
from cifar_lightning.experiments.search.search import Search, naming_storage

#: Files that a search writes next to its trials' folders, if there is anything to write.
WRITTEN = ("results.csv", "results.md", "best.yaml", *PICTURES)
#: Rows of the table that is printed at the end.
SHOWN = 10


def make_parser() -> OwnParser:
    """The parser of a search's own options."""
    parser = OwnParser(
        command="search",
        description="Search for the best options with Optuna. All options of cifar-lightning fit are accepted too and "
        "apply to all trials. Running the same command again continues the search.",
    )
    parser.add_class_arguments(Options)
    return parser


def main(args: list[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: With status 2 on a user error or if nothing trains, 1 if a disk is full, 130 if interrupted.
    """
    own, fit = make_parser().split(args)
    with command(), quiet(), interruptible():
        options = Options(**own.as_dict())
        folder = Path(options.out or Path("runs", "search", name_of(find_config(options.vary, "search"))))
        with naming_storage(options, folder):
            search = Search(fit, options, folder, "cifar-lightning search " + shlex.join(args))
            search.run()
    if results := sort_by(options.metric, search.results()):
        Console().print(make_table(results[:SHOWN], results[0].name))
    print(count_states(search.study))
    best = search.best_checkpoint()
    then = f"cifar-lightning test --ckpt_path {best}" if best else ""
    say_where(folder, [name for name in WRITTEN if (folder / name).exists()], then)


def sort_by(metric: str, results: Iterable[Result]) -> list[Result]:
    """Sort the results by a metric, the best first and NaN last."""
    sign = -1 if metric == "val_accuracy" else 1
    values = [(result.best.get(metric, math.nan), result) for result in results]
    ranked = sorted(values, key=lambda pair: (not math.isfinite(pair[0]), sign * pair[0]))
    return [result for _, result in ranked]
