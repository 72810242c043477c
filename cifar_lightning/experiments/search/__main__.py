"""The command: scripts/search configs/search/tuner.yaml --config configs/tuner.yaml."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser

from cifar_lightning.cli.arguments import split_own_options
from cifar_lightning.cli.command import command
from cifar_lightning.experiments.search.options import Options
from cifar_lightning.experiments.search.results import count_states
from cifar_lightning.experiments.search.search import Search
from cifar_lightning.experiments.search.space import read_space


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="scripts/search",
        description="Train with options that Optuna draws from a space. All options of lightning fit are taken too: "
        "they hold for every trial. The same command again goes on with the study.",
    )
    parser.add_argument("space", type=str, help="YAML file of what varies; before any option")
    parser.add_class_arguments(Options)
    return parser


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to the trials' own lines to say what goes on; warnings are still seen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "optuna")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(args: list[str] | None = None) -> None:
    """Run the command line on `args`, by default those of the process.

    Raises:
        SystemExit: With status 2 for a user's mistake, after one message that says what is wrong.
    """
    own, fit = split_own_options(sys.argv[1:] if args is None else args)
    given = _make_parser().parse_args(own).as_dict()
    with command(), _quiet():
        path = Path(given.pop("space"))
        options = Options(**given)
        folder = Path(options.out or Path("runs") / "search" / path.stem)
        search = Search(read_space(path), fit, options, folder)
        try:
            search.run()
        except (KeyboardInterrupt, SystemExit):
            print("interrupted; the same command goes on with the study", file=sys.stderr)
            raise SystemExit(1) from None
    print(f"{count_states(search.study)}; everything is in {folder}")


if __name__ == "__main__":
    main()
