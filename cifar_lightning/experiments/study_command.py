"""`cifar-lightning study`."""

from jsonargparse import ArgumentParser

from cifar_lightning.cli.arguments import split_own_options
from cifar_lightning.cli.configs import find_config
from cifar_lightning.experiments.study.__main__ import main as study


def make_parser() -> ArgumentParser:
    """The parser of the command's own options."""
    parser = ArgumentParser(prog="cifar-lightning study")
    parser.add_argument("configs", nargs="+", type=str)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--out", type=str)
    parser.add_argument("--jobs", type=int)
    return parser


def main(args: list[str]) -> None:
    """Run the command."""
    own, _ = split_own_options(args)
    if "--help" in own:
        make_parser().parse_args(own)
    end = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    raise SystemExit(study([*map(find_config, args[:end]), *args[end:]]))
