"""Messages to the user."""

from rich import get_console


def say(line: str, wrap: bool = True) -> None:
    """Print a line unformatted, above the progress bar if there is one.

    Args:
        line: The line.
        wrap: Whether to break it between words. False for lines with a path or a command to copy.
    """
    get_console().print(line, highlight=False, markup=False, soft_wrap=not wrap)
