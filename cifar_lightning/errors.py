"""Errors that several folders raise."""

from collections.abc import Iterable
from difflib import get_close_matches


class DivergenceError(ArithmeticError):
    """The training loss has become NaN or infinite."""


def unknown_name(kind: str, given: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not among the `known` ones; it suggests the closest matches."""
    names = list(known)
    near = get_close_matches(str(given), names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return ValueError(f"unknown {kind}: expected one of {', '.join(names)}; got {given!r}{hint}")


def refuse_more(most: int, given: int, what: str) -> None:
    """Refuse a number of things that would exhaust the memory or never end, before any is made.

    Args:
        most: The largest number allowed.
        given: The number asked for.
        what: What they are, for the message.

    Raises:
        ValueError: If there are more.
    """
    if given > most:
        raise ValueError(f"too many {what}: expected at most {most:,}, got {given:,}")
