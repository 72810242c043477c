"""jsonargparse's errors about values, put in one line: which option, what would be right, what was given."""

import ast
import re
from difflib import get_close_matches

#: What a value of a type is called.
TYPES = {
    "bool": "true or false",
    "dict": "names and values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "NoneType": "null",
    "str": "a text",
}


def explain(message: str) -> str:
    """The message in one line; what it says of a Union's types as a list of what would be right."""
    line = " ".join(message.split())
    key = re.search(r'Parser key "([^"]+)"', line)
    given = re.findall(r"(?:Given|Got) value: ?(.*)$", line)
    if key is None or not given:
        if missing := re.fullmatch(r"argument (?:.*/)?(--\S+): expected one argument", line):
            return f"{missing[1]} without a value: expected one, received none"
        if missing := re.fullmatch(r"the following arguments are required: (.*)", line):
            return f"{missing[1]} missing: expected a value, since there is no default; received none"
        return line
    expected, choices = _expectations(line)
    if not expected:
        return line
    near = get_close_matches(given[0], choices, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    received = "null" if given[0] == "None" else repr(given[0])
    right = " or ".join([", ".join(expected[:-1]), expected[-1]] if len(expected) > 1 else expected)
    return f"--{key[1]}: expected {right}; received {received}{hint}"


def _expectations(line: str) -> tuple[list[str], list[str]]:
    """What would be right, each once, and the values among it that can be chosen from."""
    expected: list[str] = []
    choices: list[str] = []
    for literal, cls, other in re.findall(
        r"Expected (?:a|an) (?:typing\.Literal(\[.*?\])|<class '([\w.]+)'>|(dot import path))", line
    ):
        if literal:
            values = list(map(str, ast.literal_eval(literal)))
            choices += values
            expected += values
        elif cls:
            name = cls.rpartition(".")[2]
            expected.append(TYPES.get(name, name))
        elif other:
            expected.append("a class's name or import path")
    return list(dict.fromkeys(expected)), choices
