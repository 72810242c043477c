"""`cifar-lightning sweep --vary "{model.lr: [0.02, 0.05]}"`: train for each of several values, all at once."""

from jsonargparse import ArgumentParser, get_loader

from cifar_lightning.cli.arguments import split_own_options
from cifar_lightning.cli.command import command
from cifar_lightning.cli.main import CLI
from cifar_lightning.experiments.sweep import Sweep


def make_parser() -> ArgumentParser:
    """The parser of the command's own options."""
    parser = ArgumentParser(prog="cifar-lightning sweep")
    parser.add_argument("--vary", type=str, required=True, help="values by option, as in {model.lr: [0.02, 0.05]}")
    return parser


def main(args: list[str]) -> None:
    """Run the command."""
    with command():
        own, fit = split_own_options(args)
        vary = get_loader("yaml")(make_parser().parse_args(own).vary)
        CLI(["fit", *fit], callbacks=[Sweep({name.removeprefix("model."): values for name, values in vary.items()})])
