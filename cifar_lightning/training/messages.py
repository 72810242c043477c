"""Messages to the user."""

from rich import get_console


def say(line: str, wrap: bool = True) -> None:
    """Print a line as it is, above the progress bar if there is one.

    Args:
        line: The line.
        wrap: Whether to break it between words; not where there is a path or a command in it, to be copied.
    """
    get_console().print(line, highlight=False, markup=False, soft_wrap=not wrap)
