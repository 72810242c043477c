"""What a search leaves behind: a line for each trial, trials.csv, best.yaml, and Optuna's plots."""

import csv
import io
import math
import warnings
from pathlib import Path

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cifar_lightning.analysis.plots import DPI
from cifar_lightning.experiments.search.options import Options
from cifar_lightning.experiments.search.space import SearchSpace
from cifar_lightning.experiments.search.trial import trial_folder
from cifar_lightning.files import write_whole

#: Trials that are part of the study; a failed one is not.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def describe(study: Study, number: int, options: Options) -> str:
    """The line of a trial that has ended."""
    trials = study.get_trials(deepcopy=False)
    trial = trials[number]
    ended = len([t for t in trials if t.state in COUNTED and t.state != TrialState.RUNNING])
    seconds = trial.duration.total_seconds() if trial.duration else math.nan
    best = _best(study)
    value = f"{options.metric} {_figure(trial.value)}"
    if trial.state == TrialState.FAIL:
        value = str(trial.user_attrs["error"]).splitlines()[0]
    parts = [
        f"{ended}/{options.trials}",
        f"trial {number}",
        trial.state.name.lower(),
        value,
        f"best {_figure(best.value)} (trial {best.number})" if best else "no best yet",
        f"{seconds:.0f} s",
        " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.params.items()
        ),
    ]
    return "  ".join(parts)


def count_states(study: Study) -> str:
    """How many trials there are of each state, as in "9 complete, 1 pruned"."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    counts = {state.name.lower(): states.count(state) for state in TrialState}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def write_results(study: Study, space: SearchSpace, metric: str, folder: Path) -> None:
    """Write trials.csv, best.yaml and the plots."""
    _write_trials(study, list(space.distributions), metric, folder)
    best = _best(study)
    if best is None:
        return
    config = (trial_folder(folder, best.number) / "config.yaml").read_text()
    title = f"# Trial {best.number}, the best so far: {metric} {best.value!r}\n"
    write_whole(folder / "best.yaml", (title + config).encode())
    _draw(study, metric, folder)


def _write_trials(study: Study, names: list[str], metric: str, folder: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["number", "state", metric, "validations", "seconds", *names, "folder", "error"])
    for trial in study.get_trials(deepcopy=False):
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        value = "" if trial.value is None else trial.value
        params = [trial.params.get(name, "") for name in names]
        error = trial.user_attrs.get("error", "")
        row = [trial.number, trial.state.name.lower(), value, len(trial.intermediate_values), seconds, *params]
        writer.writerow([*row, trial_folder(folder, trial.number).name, error])
    write_whole(folder / "trials.csv", text.getvalue().encode())


def _best(study: Study) -> FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if complete else None


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _draw(study: Study, metric: str, folder: Path) -> None:
    """Draw Optuna's own plots."""
    import matplotlib
    from optuna.visualization import matplotlib as plots

    matplotlib.use("agg")
    several = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) > 1
    kinds = ["optimization_history", "slice", "parallel_coordinate"] + ["param_importances"] * several
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls them experimental
            drawn = getattr(plots, f"plot_{kind}")(
                study, **({} if kind == "param_importances" else {"target_name": metric})
            )
        axes = drawn if not hasattr(drawn, "flat") else drawn.flat[0]
        if kind == "parallel_coordinate":  # whose horizontal lines are those of as many scales
            for scale in axes.figure.axes:
                scale.grid(False)
        axes.figure.savefig(folder / f"{kind}.png", dpi=DPI, bbox_inches="tight")
        matplotlib.pyplot.close(axes.figure)
