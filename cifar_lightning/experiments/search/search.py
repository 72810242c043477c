"""A search: trainings whose options Optuna draws from a space.

T. Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019,
https://arxiv.org/abs/1907.10902. Each trial is a run of `lightning fit` in a folder of its own.
"""

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import Trial, TrialState

from cifar_lightning.experiments.search.check import check
from cifar_lightning.experiments.search.options import Options, make_pruner, make_sampler
from cifar_lightning.experiments.search.results import COUNTED, describe, write_results
from cifar_lightning.experiments.search.space import SearchSpace
from cifar_lightning.experiments.search.trial import (
    RUNNING,
    TrialReport,
    begin,
    free_memory,
    is_alive,
    train,
    trial_folder,
)

#: A process gives up after this many failed trials in a row.
FAILURES_IN_A_ROW = 3
#: Options that may differ from one process to another of the same study.
PLACE_OPTIONS = {"data.data_dir", "data.download", "trainer.accelerator", "trainer.devices"}


class Search:
    """A study and what it needs to go on.

    Args:
        space: What varies.
        arguments: Of `lightning fit`, for all trials.
        options: The search's own.
        folder: Where everything is written.

    Raises:
        ValueError: If something is wrong that shows before the first trial.
    """

    def __init__(self, space: SearchSpace, arguments: list[str], options: Options, folder: Path) -> None:
        self.space, self.options, self.folder = space, options, folder
        config, self.arguments = check(space, ["fit", *arguments])
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self.study = self._open(config)

    def _open(self, config: dict[str, Any]) -> Study:
        """Make the study, or go on with it if it is the same."""
        study = optuna.create_study(
            storage=self._storage(),
            study_name=self.options.study,
            direction="maximize" if self.options.metric == "val_accuracy" else "minimize",
            sampler=make_sampler(self.options),
            pruner=make_pruner(self.options),
            load_if_exists=True,
        )
        identity = self._identity(config)
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", identity)
        begun = study.user_attrs["identity"]
        for name, value in identity.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"another {name} than the study was begun with: expected {begun.get(name)}, or another --out (and "
                    f"--storage, if given); received {value}"
                )
        return study

    def _storage(self) -> BaseStorage:
        place = self.options.storage or f"sqlite:///{self.folder / 'study.db'}"
        return RDBStorage(place) if "://" in place else JournalStorage(JournalFileBackend(place))

    def _identity(self, config: dict[str, Any]) -> dict[str, str]:
        """What has to be the same for trials to be of one study."""
        mark = self.folder / ".study"  # which shows processes that they share the folder too
        if not mark.exists():
            mark.write_text(uuid.uuid4().hex)
        return {
            "metric": self.options.metric,
            "space": self.space.as_json(),
            **{name: str(value) for name, value in config.items() if name not in PLACE_OPTIONS | {"config"}},
            "folder": mark.read_text(),
        }

    def run(self) -> None:
        """Train until there are as many trials as asked for.

        Raises:
            ValueError: If several trials failed in a row.
        """
        errors: list[str] = []
        while len(errors) < FAILURES_IN_A_ROW:
            with self._alone():
                self._fail_the_dead()
                begun = self._begin()
            if begun is None:
                return
            error = self._train(*begun)
            errors = [*errors, error] if error else []
        raise ValueError(
            f"the search gave up: expected trials that train, received {len(errors)} failures in a row, the last one "
            f"{errors[-1]}"
        )

    def _begin(self) -> tuple[Trial, IO[str]] | None:
        """A new trial and its locked file; None if there are enough."""
        if len(self.study.get_trials(deepcopy=False, states=COUNTED)) >= self.options.trials:
            return None
        trial = self.study.ask(fixed_distributions=self.space.distributions)
        return trial, begin(trial_folder(self.folder, trial.number))

    def _fail_the_dead(self) -> None:
        """Mark as failed the trials whose process was killed."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            folder = trial_folder(self.folder, trial.number)
            if not is_alive(folder):
                self.study.tell(trial.number, state=TrialState.FAIL)
                (folder / RUNNING).unlink(missing_ok=True)
                print(f"trial {trial.number}  failed: its process was killed")

    def _train(self, trial: Trial, running: IO[str]) -> str:
        """Train once, and tell the study the outcome; return the error if it failed, otherwise ""."""
        folder, report = trial_folder(self.folder, trial.number), TrialReport(trial, self.options.metric)
        error = "interrupted"
        try:
            error = train(self.arguments, self.space.flags(trial.params), report, folder)
        finally:
            with self._alone():
                self._tell(trial, report, error)
                running.close()
                (folder / RUNNING).unlink(missing_ok=True)
                print(describe(self.study, trial.number, self.options), flush=True)
                write_results(self.study, self.space, self.options.metric, self.folder)
        free_memory()
        return error

    def _tell(self, trial: Trial, report: TrialReport, error: str) -> None:
        if error:
            trial.set_user_attr("error", error)
            self.study.tell(trial, state=TrialState.FAIL)
        elif report.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, report.value, state=TrialState.COMPLETE)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process is here."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
