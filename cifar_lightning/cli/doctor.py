"""`cifar-lightning doctor`: what this machine has for the package, and what would have to be done."""

import textwrap
from collections.abc import Callable, Iterable, Mapping

from jsonargparse import ArgumentParser

from cifar_lightning.cli.doctor_checks import CHECKS, Finding

WIDTH = 80
INDENT = 16


def make_parser() -> ArgumentParser:
    """The parser of the command's options."""
    return ArgumentParser(
        prog="cifar-lightning doctor",
        description="Print versions, devices, data and folders as they are found, and what would have to be done. "
        "Nothing is downloaded, installed or kept.",
    )


def main(args: list[str]) -> None:
    """Run all checks, and print what they find."""
    make_parser().parse_args(args)
    remedies = []
    for finding in run_checks(CHECKS):
        print(format_finding(finding), flush=True)
        if finding.remedy:
            remedies.append(finding)
    print("\n" + format_remedies(remedies))


def run_checks(checks: Mapping[str, Callable[[], Finding]]) -> Iterable[Finding]:
    """What the checks find; one that fails is a finding itself, for what it needs may be what is broken."""
    for subject, check in checks.items():
        try:
            yield check()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            yield Finding(subject, f"can't be found out: {reason}", "mend what is named above, and ask again")


def format_finding(finding: Finding) -> str:
    """A finding as its subject and its lines, at 80 columns."""
    return _wrap(finding.text, f"{finding.subject:{INDENT}}", " " * INDENT)


def format_remedies(remedies: Iterable[Finding]) -> str:
    """What would have to be done."""
    lines = [_wrap(f"{finding.subject}: {finding.remedy}", "- ", "  ") for finding in remedies]
    return "\n".join(["To do:", *lines]) if lines else "Nothing to do."


def _wrap(text: str, first: str, indent: str) -> str:
    """The text at 80 columns, each of its lines for itself; what can't be broken, as a path, stays whole."""
    wrapper = textwrap.TextWrapper(WIDTH, indent, indent, break_long_words=False, break_on_hyphens=False)
    return first + "\n".join(wrapper.fill(line) for line in text.split("\n")).removeprefix(indent)
