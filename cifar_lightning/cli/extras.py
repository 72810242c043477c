"""The package's extras: what some commands need and a plain installation leaves out."""

from importlib.util import find_spec

#: The modules of each extra of pyproject.toml that a user may need.
EXTRAS = {
    "search": ("optuna", "scipy"),
    "study": ("plotly",),
}


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def install_command(*extras: str) -> str:
    """The command that installs extras, whichever way the package itself was installed."""
    return f'pip install "cifar_lightning[{",".join(extras)}]"'


def require(extra: str) -> None:
    """Check that an extra is installed.

    Raises:
        ValueError: If it is not, with the command that installs it.
    """
    if missing := missing_modules(extra):
        raise ValueError(
            f"the extra {extra!r} is missing: expected {' and '.join(EXTRAS[extra])}, received no "
            f"{' and no '.join(missing)}. This installs it: {install_command(extra)}"
        )
