"""`cifar-lightning doctor`: checks this machine and says what needs to be done."""

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
        description="Check versions, devices, data and folders, and list what needs to be done. "
        "Nothing is downloaded, installed or written.",
    )


def main(args: list[str]) -> None:
    """Run all checks and print their findings."""
    make_parser().parse_args(args)
    remedies = []
    for finding in run_checks(CHECKS):
        print(format_finding(finding), flush=True)
        if finding.remedy:
            remedies.append(finding)
    print("\n" + format_remedies(remedies))


def run_checks(checks: Mapping[str, Callable[[], Finding]]) -> Iterable[Finding]:
    """Run the checks. A check that fails is a finding itself, since it may need what is broken."""
    for subject, check in checks.items():
        try:
            yield check()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            yield Finding(subject, f"the check failed: {reason}", "fix the problem above and run doctor again")


def format_finding(finding: Finding) -> str:
    """Format a finding with its subject, at 80 columns."""
    return _wrap(finding.text, f"{finding.subject:{INDENT}}", " " * INDENT)


def format_remedies(remedies: Iterable[Finding]) -> str:
    """Format the list of things to do."""
    lines = [_wrap(f"{finding.subject}: {finding.remedy}", "- ", "  ") for finding in remedies]
    return "\n".join(["To do:", *lines]) if lines else "Nothing to do."


def _wrap(text: str, first: str, indent: str) -> str:
    """Wrap each line of a text at 80 columns; what can't be broken, such as a path, stays whole."""
    wrapper = textwrap.TextWrapper(WIDTH, indent, indent, break_long_words=False, break_on_hyphens=False)
    return first + "\n".join(wrapper.fill(line) for line in text.split("\n")).removeprefix(indent)
