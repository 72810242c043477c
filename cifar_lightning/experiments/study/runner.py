"""The runs of a study, several at once: started, followed, stopped, and resumed where they were."""

import os
import re
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cifar_lightning.experiments.study.results import Result
from cifar_lightning.experiments.study.run import Run, execute

#: Seconds between two looks at the runs.
PERIOD = 0.3


def share_cores(jobs: int) -> None:
    """Give each of `jobs` processes its share of the cores, unless OMP_NUM_THREADS says how many threads.

    Two threads on a busy core make an epoch five times slower.
    """
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))


class Runner:
    """Executes what is not finished yet.

    Args:
        runs: All runs of the study.
        jobs: Number of processes at once.
        console: Where progress is shown.
        on_result: Called after each run that has ended.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, console: Console, on_result: Callable[[], None]) -> None:
        self._runs, self._jobs, self._console, self._on_result = list(runs), jobs, console, on_result
        self._waiting = [run for run in runs if not run.result.exists()]
        self._running: dict[Run, tuple[BaseProcess, TaskID, float]] = {}
        self._seconds: list[float] = []  # that finished runs have taken
        self.failed: dict[Run, str] = {}  # with what each has said last
        # Each is forked from a server that has imported everything: a fresh interpreter takes seconds to.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["cifar_lightning.experiments.study.run"])
        self._progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            console=console,
        )

    def results(self) -> list[Result]:
        """The results so far, in the order of the runs."""
        return [Result.load(run.result) for run in self._runs if run.result.exists()]

    @property
    def first_config(self) -> str:
        """Name of the first run's config, which others are compared with."""
        return self._runs[0].config.stem

    def execute(self) -> None:
        """Execute all; on an interruption, stop what is running, which can be resumed."""
        finished = len(self._runs) - len(self._waiting)
        if finished:
            self._console.print(f"{finished} of {len(self._runs)} runs are finished already", highlight=False)
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
                    done = len(self._runs) - len(self._waiting) - len(self._running)
                    self._progress.update(overall, completed=done, state=self._state(done))
        finally:
            for process, _, _ in self._running.values():
                process.kill()  # its last whole epoch is in last.ckpt
                process.join()

    def _start(self, run: Run) -> None:
        process = self._context.Process(target=execute, args=(run,), name=str(run))
        process.start()
        self._running[run] = process, self._progress.add_task(str(run), total=None, state=""), time.monotonic()

    def _finish(self, run: Run, process: BaseProcess, task: TaskID, seconds: float) -> None:
        process.join()
        del self._running[run]
        self._progress.remove_task(task)
        if run.result.exists():
            self._seconds.append(seconds)
            result = Result.load(run.result)
            what = f"validation {result.best['val_accuracy']:.2%}, test {result.test_accuracy:.2%}, {seconds:.0f} s"
        else:
            said = _last_line(run)  # an epoch's, if it was killed
            what = said.removeprefix("error: ") if said.startswith("error: ") else ""
            self.failed[run] = what or f"exit status {process.exitcode}"
            what = f"failed: {self.failed[run]} ({run.log})"
        ended = len(self._runs) - len(self._waiting) - len(self._running)
        self._console.print(f"{ended}/{len(self._runs)} {run}: {what}", highlight=False, soft_wrap=True)
        self._on_result()

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


def _last_line(run: Run) -> str:
    """The last line that says something, of what a run has printed."""
    try:
        with run.log.open("rb") as file:
            file.seek(max(0, run.log.stat().st_size - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    said = [line for line in lines if re.match(r"epoch +\d|error:", line)]
    return re.sub(r" +", " ", said[-1]) if said else ""
