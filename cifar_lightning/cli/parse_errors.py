"""Rewrites jsonargparse's errors in one line: the option, what was expected, and what was given."""

import ast
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

#: Readable names of types.
TYPES = {
    "bool": "true or false",
    "dict": "names and values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "Mapping": "names and values",
    "Sequence": "a list",
    "Iterable": "a list",
    "NoneType": "null",
    "str": "a string",
}


def explain(message: str, flags: Iterable[str] = (), options: Collection[str] = ()) -> str:
    """Rewrite a message in one line, with the types of a Union as a list.

    Args:
        message: jsonargparse's message.
        flags: The words of the command line, which have the full names of class arguments; the message does not.
        options: The names of all options, without dashes.
    """
    line = " ".join(message.split())
    key = re.search(r'Parser key "([^"]+)"', line)
    given = re.match(r".*(?:Given|Got) value: ?(.*)$", line)
    if key is None or given is None:
        if missing := re.fullmatch(r"argument (?:.*/)?(--\S+): expected one argument", line):
            return f"{missing[1]} needs a value, got none"
        if missing := re.fullmatch(r"the following arguments are required: (.*)", line):
            return f"{missing[1]} is missing: it needs a value, since it has no default"
        if wrong := re.match(r"Parser key \"(.+?)\": Unable to load config '(.*?)'", line):
            return f"--{wrong[1]}: expected a file of options, got {wrong[2]!r}"
        if wrong := re.fullmatch(r"Subcommand '.*' does not accept option '(.*)'", line):
            return f"{wrong[1]} is not an option"
        return line
    expected, choices = _expectations(line)
    if not expected:
        return line
    near = get_close_matches(given[1], choices, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    received = "null" if given[1] == "None" else repr(given[1])
    right = " or ".join([", ".join(expected[:-1]), expected[-1]] if len(expected) > 1 else expected)
    return f"{_name_in_full(key[1], flags, options)}: expected {right}; got {received}{hint}"


def _name_in_full(key: str, flags: Iterable[str], options: Collection[str]) -> str:
    if key in options:
        return f"--{key}"
    names = [word.partition("=")[0] for word in flags if word.partition("=")[0].endswith(f".{key}")]
    return names[-1] if names else key


def _expectations(line: str) -> tuple[list[str], list[str]]:
    """The expected values and types, without repetitions, and the values among them that can be chosen."""
    expected: list[str] = []
    choices: list[str] = []
    for literal, cls, *other in re.findall(
        r"Expected (?:an? )?(?:typing\.Literal(\[.*?\])|<class '([\w.]+)'>|(dot import path))|(Subclass types)", line
    ):
        if literal:
            values = list(map(str, ast.literal_eval(literal)))
            choices += values
            expected += values
        elif cls:
            name = cls.rpartition(".")[2]
            expected.append(TYPES.get(name, name))
        elif any(other):
            expected.append("a class's name or import path")
    return list(dict.fromkeys(expected)), choices
