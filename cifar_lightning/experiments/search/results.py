"""The results of a search: a line for each trial, results.csv, results.md, best.yaml, and plots."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cifar_lightning.cli.find_run import SAVED_CONFIG
from cifar_lightning.experiments.results import Result, write_csv, write_markdown
from cifar_lightning.experiments.run import Run
from cifar_lightning.experiments.search.pictures import draw_search
from cifar_lightning.files import write_whole

#: Trials that are part of the study; a failed one is not.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def describe(study: Study, run: Run, number: int, trials: int) -> str:
    """The line of a finished trial, one of so many `trials` in all."""
    every = study.get_trials(deepcopy=False)
    ended = len([trial for trial in every if trial.state in COUNTED and trial.state != TrialState.RUNNING])
    result = run.result()
    what = str(result) if result else str(every[number].user_attrs.get("error", "")).partition("\n")[0]
    best = best_trial(study)
    parts = [
        f"{ended}/{trials}",
        run.name,
        every[number].state.name.lower(),
        what,
        f"best {best.value:.4f} (trial {best.number})" if best else "no best yet",
    ]
    return "  ".join(parts)


def count_states(study: Study) -> str:
    """How many trials there are of each state, as in "9 complete, 1 pruned"."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    counts = {state.name.lower(): states.count(state) for state in TrialState}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def write_results(study: Study, runs: Sequence[Run], metric: str, command: str, folder: Path) -> None:
    """Write the tables, best.yaml and the pictures.

    Args:
        study: The study.
        runs: The run of each of its trials.
        metric: The metric that is optimized.
        command: The command that started the search.
        folder: Output folder.
    """
    trials = study.get_trials(deepcopy=False)
    write_csv(_lines(trials, runs), folder / "results.csv")
    results = finished(trials, runs)
    write_markdown(results, results[0].name if results else "", folder / "results.md", command)
    best = best_trial(study)
    if best is None:
        return
    config = (runs[best.number].folder / SAVED_CONFIG).read_text()
    title = f"# Trial {best.number}, the best so far: {metric} {best.value!r}\n"
    write_whole(folder / "best.yaml", (title + config).encode())
    draw_search(study, metric, folder)


def finished(trials: Sequence[FrozenTrial], runs: Sequence[Run]) -> list[Result]:
    """The results of the trials that have ended, in their order."""
    results = (run.result() for trial, run in zip(trials, runs, strict=True) if trial.state.is_finished())
    return [result for result in results if result is not None]


def _lines(trials: Sequence[FrozenTrial], runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for trial, run in zip(trials, runs, strict=True):
        result = run.result() if trial.state.is_finished() else None
        line = result.line() if result else {"name": run.name, "folder": run.place, **run.values}
        error = trial.user_attrs.get("error", "")
        yield {"trial": trial.number, "state": trial.state.name.lower()} | line | {"error": error}


def best_trial(study: Study) -> FrozenTrial | None:
    """The best trial so far; None if none is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if complete else None
