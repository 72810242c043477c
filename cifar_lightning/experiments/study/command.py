"""The command `cifar-lightning study`: train each config, and each point of a grid, with each seed, and compare."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from cifar_lightning.callbacks.run_folder import say_where
from cifar_lightning.cli.command import command
from cifar_lightning.cli.configs import find_config
from cifar_lightning.cli.own_parser import OwnParser
from cifar_lightning.errors import refuse_more
from cifar_lightning.experiments.check import check, given_flags, name_of, refuse
from cifar_lightning.experiments.grid import MOST_POINTS, Grid, Point, read_grid
from cifar_lightning.experiments.results import make_table, write_csv, write_markdown
from cifar_lightning.experiments.run import Run, interruptible, quiet
from cifar_lightning.experiments.study.curves import draw_curves
from cifar_lightning.experiments.study.page import write_page
from cifar_lightning.experiments.study.runner import Runner, share_cores

#: Options of `cifar-lightning fit` that a study sets itself, each with what to use instead.
SET_BY_THE_STUDY = {
    "seed_everything": "--seeds, one for each run",
    "config": "the configs before all options",
    "c": "the configs before all options",
}


def make_parser() -> OwnParser:
    """The parser of a study's own options."""
    parser = OwnParser(
        command="study",
        description="Train each config, at each point of a grid if there is one, with each seed, and compare them in "
        "results.csv, results.md, curves.png and report.html. All options of cifar-lightning fit are accepted too and "
        "apply to all runs. Running the same command again continues with unfinished runs.",
    )
    parser.add_argument(
        "configs", nargs="+", type=str, help="config files of cifar-lightning fit, or names of shipped ones"
    )
    parser.add_argument(
        "--vary", type=str, default=None, help="grid of options: YAML, a YAML file, or the name of a shipped one"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds, each used for one run per config"
    )
    parser.add_argument("--out", type=str, default="runs/study", help="folder of the study")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="number of parallel runs, which share the cores")
    return parser


def main(args: list[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: With status 1 if a run failed, 2 on a user error, 130 if interrupted.
    """
    given, fit = make_parser().split(args)
    out = Path(given.out)
    with command(), quiet(), interruptible():
        refuse(given_flags(fit), SET_BY_THE_STUDY)
        grid = None if given.vary is None else read_grid(given.vary)
        configs = [find_config(config) for config in given.configs]
        runs = make_runs(configs, grid, given.seeds, out, fit)
        for run in runs:  # all of them before anything is written
            run.check()
        for run in runs:
            run.prepare()
        share_cores(given.jobs)
        _execute(Runner(runs, given.jobs, Console()), out, "cifar-lightning study " + shlex.join(args))


def _execute(runner: Runner, out: Path, command: str) -> None:
    def write_tables() -> None:
        results = runner.results()
        write_csv([result.line() for result in results], out / "results.csv")
        write_markdown(results, runner.first, out / "results.md", command)

    try:
        runner.execute(write_tables)
    finally:
        write_tables()
        if results := runner.results():
            draw_curves(results, out / "curves.png")
            write_page(results, runner.first, out, command)
            runner.console.print(make_table(results, runner.first))
            names = ["results.csv", "results.md", "curves.png", "report.html"]
            say_where(out, names, f"compare the runs in {out / 'report.html'}")
    for run, what in runner.failed.items():
        print(f"error: {run.title} failed: {what}; its full output is in {run.log}", file=sys.stderr)
    if runner.failed:
        raise SystemExit(1)


def make_runs(
    configs: Sequence[str], grid: Grid | None, seeds: Sequence[int], out: Path, fit: Sequence[str]
) -> list[Run]:
    """Make the runs, all with the first seed before any with the second, so that there is much to compare early on.

    Args:
        configs: Config files of `cifar-lightning fit`.
        grid: The options that vary within each config.
        seeds: The seeds.
        out: The study's folder.
        fit: Options of `cifar-lightning fit` for all runs.

    Raises:
        ValueError: If a config does not parse or can't be built, if a config, a point or a seed is given twice, or if
            there are more than `MOST_POINTS` runs.
    """
    if grid is not None:
        refuse(dict.fromkeys(grid.options, "a grid of it"), SET_BY_THE_STUDY)
    points = grid.points() if grid is not None else [Point("", {})]
    refuse_more(MOST_POINTS, len(configs) * len(points) * len(seeds), "runs of a study")
    for config in configs:
        check([f"--config={config}", *fit], grid, config)
    for kind, names in (("config", [name_of(config) for config in configs]), ("seed", [str(seed) for seed in seeds])):
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"expected each {kind} only once, got {name} twice")
    return [_make_run(config, point, seed, out, fit) for seed in seeds for config in configs for point in points]


def _make_run(config: str, point: Point, seed: int, out: Path, fit: Sequence[str]) -> Run:
    parts = [name_of(config), *([point.name] if point.name else [])]
    arguments = (f"--config={config}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false")
    return Run(
        name=", ".join(parts),
        title=", ".join([*parts, f"seed {seed}"]),
        out=out,
        place=f"{','.join(parts)}/seed_{seed}",
        arguments=(*arguments, *fit, *point.flags),
        values=point.values,
    )
