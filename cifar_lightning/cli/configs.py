"""The configs that come with the package: found by name, and listed or printed by `cifar-lightning configs`."""

import os
import textwrap
from difflib import get_close_matches
from pathlib import Path

from jsonargparse import ArgumentParser, get_loader

from cifar_lightning.cli.mistakes import one_message

SHIPPED = Path(__file__).parent.parent / "configs"
#: Folders of files that describe what varies rather than what is trained.
SPACES = ("grids", "search")


def shipped_names() -> list[str]:
    """The names of all shipped files, such as "one_cycle" and "search/tuner"."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def find_config(name: str, folder: str = "") -> str:
    """The file that a config's name stands for.

    Args:
        name: A file; YAML itself, which is returned unchanged; or the name of a shipped file, with or without .yaml.
        folder: The folder of shipped files in which names are looked up first, such as "search".

    Raises:
        ValueError: If it is none of these; the message suggests the closest names.
    """
    if _is_yaml(name):
        return name
    path = os.path.expanduser(name)
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    return str(shipped_file(name, folder))


def shipped_file(name: str, folder: str = "") -> Path:
    """The shipped file of a name, looked up in a folder first.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    bare = name.removesuffix(".yaml")
    for shipped in (f"{folder}/{bare}", bare) if folder else (bare,):
        if shipped in shipped_names():
            return SHIPPED / f"{shipped}.yaml"
    raise ValueError(
        f"no such config: expected a YAML file or the name of a shipped one{_nearest(bare)}, got {name!r}. "
        "cifar-lightning configs lists the shipped ones"
    )


def stray_word(word: str) -> str:
    """The error message for a word without an option; "selu" is probably meant as a config's name."""
    is_shipped = word.removesuffix(".yaml") in shipped_names() and word.partition("/")[0] not in SPACES
    is_config = is_shipped or (word.endswith(".yaml") and os.path.isfile(word))
    hint = f": did you mean --config {word}?" if is_config else ""
    return f"a value without an option: expected --OPTION VALUE, got {word!r}{hint}"


def _is_yaml(text: str) -> bool:
    """Whether a text is a config itself, or meant as one; a file name is YAML too, but only a string."""
    try:
        return not isinstance(get_loader("yaml")(text), str)
    except Exception:  # the loader's own, whose class depends on what reads YAML; the parser will say what is wrong
        return True


def _nearest(name: str) -> str:
    """A hint with the shipped names that resemble a wrong one; of a path, the last part is tried too."""
    by_part = {part: full for full in shipped_names() for part in (full, full.rpartition("/")[2])}
    tries = (name, name.replace("\\", "/").rpartition("/")[2])
    near = [by_part[part] for each in tries for part in get_close_matches(each, by_part, n=2, cutoff=0.6)]
    return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""


def describe(name: str) -> str:
    """The comment in the first line of a shipped file."""
    with (SHIPPED / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def list_configs() -> str:
    """All shipped files by name, each with its description, at 80 columns."""
    names = shipped_names()
    spaces = [name for name in names if name.partition("/")[0] in SPACES]
    sections = {
        "Configs, for --config NAME:": [name for name in names if name not in spaces],
        "Grids and search spaces, for study, sweep and search:": spaces,
    }
    lines = []
    for title, members in sections.items():
        width = max(map(len, members), default=0) + 2
        lines.append(title)
        for name in members:
            text = textwrap.fill(describe(name), 78 - width).splitlines() or [""]
            lines += [f"  {first:{width}}{line}" for first, line in zip([name, *[""] * len(text)], text, strict=False)]
        lines.append("")
    return "\n".join([*lines, "cifar-lightning configs NAME > my.yaml prints one to start from.", ""])


def make_parser() -> ArgumentParser:
    """The parser of the command's options."""
    parser = ArgumentParser(
        prog="cifar-lightning configs", description="List the configs that come with the package, or print one."
    )
    parser.add_argument("name", nargs="?", type=str, help="name of the config to print; all are listed by default")
    return parser


def main(args: list[str]) -> None:
    """List the shipped configs, or print one.

    Raises:
        SystemExit: With status 2 for an unknown one.
    """
    name = make_parser().parse_args(args).name
    with one_message():
        print(list_configs() if name is None else shipped_file(name).read_text(encoding="utf-8"), end="")
