"""Executes the runs of a study, several at once: starts, monitors, stops and resumes them."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cifar_lightning.cli.command import command
from cifar_lightning.compiled.threads import usable_cores
from cifar_lightning.experiments.results import Result
from cifar_lightning.experiments.run import Run

#: Seconds between two looks at the runs.
PERIOD = 0.3


def share_cores(jobs: int) -> None:
    """Give each of `jobs` processes its share of the cores, unless OMP_NUM_THREADS is set.

    Two threads on a busy core make an epoch five times slower.
    """
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))


def execute(run: Run) -> None:
    """Train and test, unless another process has, with output to `run.log`; exit with status 1 on failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study itself stops its runs
    with run.log.open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        # Another process may hold it, such as a run that has outlived its study: wait for it and use its result.
        with run.lock:
            if run.result() is not None:
                return
            log.truncate(0)  # drop the output of an earlier attempt
            try:
                with command():
                    run.train(test=True).save(run.result_file)
            except Exception as error:
                traceback.print_exc()
                print(f"error: {type(error).__name__}: {error}")
                sys.exit(1)


class Runner:
    """Executes the unfinished runs.

    Args:
        runs: All runs of the study.
        jobs: Number of processes at once.
        console: Where progress is shown.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, console: Console) -> None:
        self._runs, self._jobs, self.console = list(runs), jobs, console
        self._waiting = [run for run in runs if run.result() is None]
        self._running: dict[Run, tuple[BaseProcess, TaskID, float]] = {}
        self._seconds: list[float] = []  # that finished runs have taken
        self.failed: dict[Run, str] = {}  # with what each has said last
        self._context = _make_context()
        self._progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            console=console,
        )

    def results(self) -> list[Result]:
        """The results so far, in the order of the runs."""
        return [result for run in self._runs if (result := run.result()) is not None]

    @property
    def first(self) -> str:
        """The name that others are compared with."""
        return self._runs[0].name

    def execute(self, on_result: Callable[[], None]) -> None:
        """Execute all runs; if interrupted, stop the running ones, which can be resumed.

        Args:
            on_result: Called after each run that has ended.
        """
        finished = len(self._runs) - len(self._waiting)
        if finished:
            self.console.print(f"{finished} of {len(self._runs)} runs are already finished", highlight=False)
        try:
            with self._progress:
                overall = self._progress.add_task("study", total=len(self._runs), completed=finished, state="")
                while self._waiting or self._running:
                    while self._waiting and len(self._running) < self._jobs:
                        self._start(self._waiting.pop(0))
                    time.sleep(PERIOD)
                    for run, (process, task, start) in list(self._running.items()):
                        self._progress.update(task, state=_last_line(run))
                        if not process.is_alive():
                            self._finish(run, process, task, time.monotonic() - start)
                            on_result()
                    done = len(self._runs) - len(self._waiting) - len(self._running)
                    self._progress.update(overall, completed=done, state=self._state(done))
        finally:
            for process, _, _ in self._running.values():
                process.kill()  # its last whole epoch is in last.ckpt
                process.join()

    def _start(self, run: Run) -> None:
        process = self._context.Process(target=execute, args=(run,), name=run.title)  # type: ignore[attr-defined]
        process.start()
        self._running[run] = process, self._progress.add_task(run.title, total=None, state=""), time.monotonic()

    def _finish(self, run: Run, process: BaseProcess, task: TaskID, seconds: float) -> None:
        process.join()
        del self._running[run]
        self._progress.remove_task(task)
        result = run.result()
        if result is not None:
            self._seconds.append(seconds)
        else:
            said = _last_line(run)  # an epoch's, if it was killed
            what = said.removeprefix("error: ") if said.startswith("error: ") else ""
            self.failed[run] = what or f"exit status {process.exitcode}"
        ended = len(self._runs) - len(self._waiting) - len(self._running)
        what = str(result or f"failed: {self.failed[run]} ({run.log})")
        self.console.print(f"{ended}/{len(self._runs)} {run.title}: {what}", highlight=False, soft_wrap=True)

    def _state(self, done: int) -> str:
        parts = [f"{done} done", f"{len(self._running)} running", f"{len(self._waiting)} waiting"]
        if self.failed:
            parts.insert(1, f"{len(self.failed)} failed")
        if self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            spent = sum(min(mean, time.monotonic() - start) for _, _, start in self._running.values())
            left = (mean * (len(self._waiting) + len(self._running)) - spent) / self._jobs
            parts.append(f"about {left / 60:.0f} min left")
        return ", ".join(parts)


def _make_context() -> BaseContext:
    """The context for new processes: forked, where possible, from a server that has done the slow imports."""
    if "forkserver" not in get_all_start_methods():  # Windows
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _last_line(run: Run) -> str:
    """The last informative line of a run's output."""
    try:
        with run.log.open("rb") as file:
            file.seek(max(0, run.log.stat().st_size - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    said = [line for line in lines if re.match(r"epoch +\d|error:", line)]
    return re.sub(r" +", " ", said[-1]) if said else ""
