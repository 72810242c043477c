"""What a wrong name is answered with, and what ends a training that can't go on."""

from collections.abc import Iterable
from difflib import get_close_matches


class DivergenceError(ArithmeticError):
    """The loss of a training is not a finite number any more."""


def unknown_name(kind: str, received: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not among the `known` ones, with the nearest of them."""
    names = list(known)
    near = get_close_matches(str(received), names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return ValueError(f"unknown {kind}: expected one of {', '.join(names)}; received {received!r}{hint}")


def refuse_more(most: int, received: int, what: str) -> None:
    """Refuse a number of things that no memory holds, or that have no end, before any is made.

    Args:
        most: How many there may be.
        received: How many are asked for.
        what: What they are, for the message.

    Raises:
        ValueError: If there are more.
    """
    if received > most:
        raise ValueError(f"too many {what}: expected at most {most:,}, received {received:,}")
