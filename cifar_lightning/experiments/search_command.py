"""`cifar-lightning search`."""

from cifar_lightning.cli.configs import find_config
from cifar_lightning.experiments.search.__main__ import _make_parser as make_parser
from cifar_lightning.experiments.search.__main__ import main as search

__all__ = ["main", "make_parser"]


def main(args: list[str]) -> None:
    """Run the command."""
    is_space = bool(args) and not args[0].startswith("-")
    search([find_config(args[0], "search"), *args[1:]] if is_space else args)
