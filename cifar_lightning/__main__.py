"""`python -m cifar_lightning`, and the scripts `cifar-lightning` and `lightning`."""

import sys
from importlib.util import find_spec

SUBCOMMANDS = ("fit", "validate", "test", "predict")


def main() -> None:
    """Run the command line."""
    from cifar_lightning.cli.main import main

    main()


def lightning() -> None:
    """Run the command line for what it knows, and lightning-sdk, which owns a script of this name too, for the rest."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in SUBCOMMANDS or first.startswith("-"):
        main()
    elif find_spec("lightning_sdk") is not None:
        from lightning_sdk.cli.entrypoint import main_cli

        main_cli()
    else:
        known = ", ".join(SUBCOMMANDS)
        sys.exit(f"error: unknown command: expected one of {known}, or lightning-sdk installed; received {first!r}")


if __name__ == "__main__":
    main()
