"""The package's extras: dependencies of some commands that a plain installation leaves out."""

from importlib.util import find_spec

#: The modules of each extra of pyproject.toml that a user may need.
EXTRAS = {
    "search": ("optuna", "scipy"),
    "study": ("plotly",),
    "export": ("onnx", "onnxscript", "onnxruntime", "safetensors"),
    "hub": ("huggingface_hub", "safetensors"),
    "parquet": ("pyarrow",),
}


def missing_modules(extra: str, *needed: str) -> list[str]:
    """The modules of an extra that are not installed, among all or among the needed ones."""
    return [module for module in needed or EXTRAS[extra] if find_spec(module) is None]


def install_command(*extras: str) -> str:
    """The command that installs extras, whichever way the package itself was installed."""
    return f'pip install "cifar_lightning[{",".join(extras)}]"'


def require(extra: str, *needed: str) -> None:
    """Check that an extra is installed.

    Args:
        extra: Its name.
        needed: Those of its modules that will be used; by default all.

    Raises:
        ValueError: If it is not, with the command that installs it.
    """
    if missing := missing_modules(extra, *needed):
        raise ValueError(
            f"the extra {extra!r} is missing: expected {' and '.join(needed or EXTRAS[extra])}, got no "
            f"{' and no '.join(missing)}. Install it with: {install_command(extra)}"
        )
