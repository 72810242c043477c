"""The command: scripts/study configs/*.yaml --seeds 1 2 3 --out runs/study."""

import argparse
import contextlib
import io
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cifar_lightning.cli.arguments import split_own_options
from cifar_lightning.cli.main import main as lightning
from cifar_lightning.experiments.study.page import write_page
from cifar_lightning.experiments.study.results import COLUMNS, Result, draw_curves, summarize, write_csv, write_markdown
from cifar_lightning.experiments.study.run import Run
from cifar_lightning.experiments.study.runner import Runner, share_cores

#: Options of `lightning fit` that a study sets itself, each with what is expected in its place.
SET_BY_THE_STUDY = {
    "--seed_everything": "--seeds, one for each run",
    "--config": "the configs before all options",
    "-c": "the configs before all options",
    "--ckpt_path": "none: a run that was stopped is resumed by itself",
    "--trainer.default_root_dir": "--out",
    "--trainer.fast_dev_run": "runs that can be compared",
}
PARSER = argparse.ArgumentParser(
    prog="scripts/study",
    description="Train each config with each seed, and compare them: results.csv, results.md, curves.png, report.html.",
    epilog="Options of `lightning fit` (--trainer.*, --model.*, --data.*: all with a dot) are taken too, and hold for "
    "all runs. A run that is finished is not run again; one that was stopped is resumed.",
)
PARSER.add_argument("configs", nargs="+", type=Path, help="YAML files of `lightning fit`")
PARSER.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
PARSER.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the study; default: runs/study")
PARSER.add_argument("--jobs", type=int, default=1, help="runs at once, each with its share of the cores; default: 1")


def main(argv: list[str]) -> int:
    """Run the command; return 1 if a run failed, 2 for a user's mistake, 130 if interrupted."""
    own, fit = split_own_options(argv)
    options, flags = PARSER.parse_args(own), tuple(fit)
    console = Console()
    try:
        refuse_what_can_not_act(flags)
        runs = make_runs(options.configs, options.seeds, options.out, flags)
        if options.jobs < 1:
            raise ValueError(f"jobs out of range: expected 1 or more, received {options.jobs}")
        for run in runs:
            run.prepare()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    share_cores(options.jobs)
    command = "scripts/study " + shlex.join(argv)

    def write_tables() -> None:
        results = runner.results()
        write_csv(results, options.out / "results.csv")
        write_markdown(results, runner.first_config, options.out / "results.md", command)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends as Ctrl-C does
    runner = Runner(runs, options.jobs, console, write_tables)
    status = 0
    try:
        try:
            runner.execute()
        finally:
            write_tables()
            if results := runner.results():
                draw_curves(results, options.out / "curves.png")
                write_page(results, runner.first_config, options.out, command)
                console.print(make_table(results, runner.first_config))
                page = options.out / "report.html"
                console.print(f"to compare the runs, open {page}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        status = 130
    except OSError as error:
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        status = 1
    for run, what in runner.failed.items():
        print(f"error: {run} failed: {what}; all that it said is in {run.log}", file=sys.stderr)
    return status or int(bool(runner.failed))


def refuse_what_can_not_act(flags: Sequence[str]) -> None:
    """Refuse options of `lightning fit` that a study has to set itself.

    Raises:
        ValueError: If there are any.
    """
    for flag in flags:
        name, _, value = flag.partition("=")
        if name in SET_BY_THE_STUDY:
            raise ValueError(f"{name} is not for a study: expected {SET_BY_THE_STUDY[name]}, received {value or name}")


def make_table(results: list[Result], first: str) -> Table:
    """What fits on a narrow screen of results.md."""
    names = ("val_loss", "val_accuracy", "test_accuracy", "epoch_seconds")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("config", overflow="fold")
    for name in names:
        table.add_column(COLUMNS[name][0], justify="right")
    for summary in summarize(results, first):
        table.add_row(summary.config, *(getattr(summary, name).format(COLUMNS[name][1]) for name in names))
    return table


def make_runs(configs: list[Path], seeds: list[int], out: Path, flags: tuple[str, ...]) -> list[Run]:
    """The runs, all configs with the first seed before any with the second, so that there is early much to compare.

    Raises:
        ValueError: If a config does not exist, does not parse, or has the name of another; or a seed is named twice.
    """
    for kind, names in (("config", [path.stem for path in configs]), ("seed", [str(seed) for seed in seeds])):
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a {kind} named twice: expected each {kind} once, received {name} again")
    for path in configs:
        if not path.is_file():
            raise ValueError(f"no config {path}: expected a YAML file, received none")
        check_config(path, flags)
    return [Run(path, seed, out, flags) for seed in seeds for path in configs]


def check_config(path: Path, flags: tuple[str, ...]) -> None:
    """Parse a config as `lightning fit` will.

    Raises:
        ValueError: If it does not parse.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            lightning(["fit", f"--config={path}", *flags, "--print_config"])
    except SystemExit as stop:
        if stop.code not in (0, None):
            what = said.getvalue().partition("error: ")[2].strip() or said.getvalue().strip()
            raise ValueError(f"{path} does not parse: {what}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
