"""A hyperparameter search: Optuna samples options from a space, and each sample is trained.

T. Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019,
https://arxiv.org/abs/1907.10902. Each trial is a run of `cifar-lightning fit` in its own folder.
"""

import errno
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import BaseFileLock, FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cifar_lightning.experiments.axis import as_text
from cifar_lightning.experiments.check import check, given_flags, one_device, refuse
from cifar_lightning.experiments.grid import flags, read_grid
from cifar_lightning.experiments.results import Result
from cifar_lightning.experiments.run import PLACE_OPTIONS, Run
from cifar_lightning.experiments.search.options import Options, distributions, make_pruner, make_sampler
from cifar_lightning.experiments.search.results import COUNTED, best_trial, describe, finished, write_results
from cifar_lightning.experiments.search.trial import TrialReport, free_memory, train
from cifar_lightning.files import naming

#: A process gives up after this many failed trials in a row, and a trial after as many kills in one epoch.
FAILURES_IN_A_ROW = 3


@contextmanager
def naming_storage(options: Options, folder: Path) -> Iterator[None]:
    """Report a search's storage that can't be written to as the system reports a file.

    Raises:
        OSError: In the place of the library's own errors; it names the storage, without a password.
    """
    place = re.sub("//.*@", "//", options.storage or str(folder / "study.db"))
    try:
        with naming(place):  # a journal file
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise OSError(errno.EIO, str(getattr(cause, "orig", cause)), place) from error


class Search:
    """A search that can be continued, and shared by several processes.

    Args:
        fit: Options of `cifar-lightning fit` for all trials.
        options: The search's own options.
        folder: Output folder.
        command: The command that started the search.

    Raises:
        ValueError: If an option is wrong, as far as that is known before the first trial.
    """

    def __init__(self, fit: Sequence[str], options: Options, folder: Path, command: str) -> None:
        self.space, self.options, self.folder, self.command = (
            read_grid(options.vary, "search"),
            options,
            folder,
            command,
        )
        self.distributions = distributions(self.space)
        refuse(given_flags(fit) | dict.fromkeys(self.space.options, "a space of it"), {})
        config = check(fit, self.space, "the options")
        device = one_device(config, "search", "several devices are used by processes that share the search")
        self.arguments = (*fit, f"--trainer.devices={as_text(device)}")
        folder.mkdir(parents=True, exist_ok=True)
        self._alone = FileLock(folder / ".lock")  # no two processes change the study at once
        with self._alone:
            self.storage = self._make_storage()
            self.study = self._open(config)

    def _make_storage(self) -> BaseStorage:
        place = self.options.storage or f"sqlite:///{self.folder / 'study.db'}"
        return RDBStorage(place) if "://" in place else JournalStorage(JournalFileBackend(place))

    def _open(self, config: Mapping[str, Any]) -> Study:
        """Create the study, or continue it if it is the same."""
        study = optuna.create_study(
            storage=self.storage,
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
                    f"{name} has changed since the search was started: expected {begun.get(name)}, or another --out "
                    f"(and --storage, if given); got {value}"
                )
        return study

    def _identity(self, config: Mapping[str, Any]) -> dict[str, str]:
        """What must be the same for trials to belong to one study."""
        mark = self.folder / ".study"  # shows processes that they share the folder too
        if not mark.exists():
            mark.write_text(uuid.uuid4().hex)
        return {
            "metric": self.options.metric,
            "space": str(self.space),
            **{name: str(value) for name, value in config.items() if name not in PLACE_OPTIONS | {"config"}},
            "folder": mark.read_text(),
        }

    # ------------------------------------------------------------------------------------------------------- trials

    def run(self) -> None:
        """Train until there are enough trials.

        Raises:
            ValueError: If several trials failed in a row.
        """
        with self._alone:
            self._write()  # a process may have been killed before it did
        errors: list[str] = []
        while len(errors) < FAILURES_IN_A_ROW:
            with self._alone:
                begun = self._take_up() or self._begin()
            if begun is None:
                return
            error = self._train(*begun)
            errors = [*errors, error] if error else []
        raise ValueError(
            f"the search gave up after {len(errors)} failed trials in a row; the last error was: {errors[-1]}"
        )

    def results(self) -> list[Result]:
        """The results of the trials that have ended."""
        return finished(self.study.get_trials(deepcopy=False), self._runs())

    def best_checkpoint(self) -> Path | None:
        """The weights of the best trial; None if there are none."""
        best = best_trial(self.study)
        path = self.folder / self._run(best.number, {}).place / "checkpoints" / "best.ckpt" if best else None
        return path if path and path.is_file() else None

    def _begin(self) -> tuple[Trial, Run, BaseFileLock] | None:
        """A new trial, its run, and the run's lock, held; None if there are enough."""
        if len(self.study.get_trials(deepcopy=False, states=COUNTED)) >= self.options.trials:
            return None
        trial = self.study.ask()
        return trial, *self._hold(trial)

    def _take_up(self) -> tuple[Trial, Run, BaseFileLock] | None:
        """The same for a trial whose process was stopped or killed; None if there is none."""
        study = self.storage.get_study_id_from_name(self.options.study)
        for stopped in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._run(stopped.number, stopped.params).is_alive():
                continue
            trial = Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study, stopped.number))
            run, lock = self._hold(trial)
            epochs = len(stopped.intermediate_values)
            if trial.user_attrs["begun"].count(epochs) > FAILURES_IN_A_ROW:
                self._end(trial, run, f"its process was killed {FAILURES_IN_A_ROW} times in epoch {epochs + 1}")
                lock.release()
                continue
            print(f"{run.name}  resumes after epoch {epochs}: its process was stopped")
            return trial, run, lock
        return None

    def _hold(self, trial: Trial) -> tuple[Run, BaseFileLock]:
        """The run of a trial, whose values are drawn if they were not, and the run's lock, held."""
        for name, distribution in self.distributions.items():
            match distribution:
                case IntDistribution(low=low, high=high, step=step, log=log):
                    trial.suggest_int(name, low, high, step=step, log=log)
                case FloatDistribution(low=low, high=high, step=step, log=log):
                    trial.suggest_float(name, low, high, step=step, log=log)
                case CategoricalDistribution(choices=choices):
                    trial.suggest_categorical(name, choices)
        run = self._run(trial.number, trial.params)
        run.prepare()
        lock = run.lock
        lock.acquire()
        epochs = len(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        trial.set_user_attr("begun", [*trial.user_attrs.get("begun", []), epochs])
        return run, lock

    def _run(self, number: int, params: Mapping[str, Any]) -> Run:
        """The run of a trial; one that was killed while its values were drawn has not all of them."""
        values = self.space.values(params) if len(params) == len(self.distributions) else {}
        name = f"trial {number}" + (f", {self.space.name(params)}" if values else "")
        arguments = (*self.arguments, *flags(values))
        return Run(name, name, self.folder, f"trial_{number:03}", arguments, values)

    def _train(self, trial: Trial, run: Run, lock: BaseFileLock) -> str:
        """Train once, tell the study the outcome, and release the lock; return the error if it failed, otherwise ""."""
        try:
            # There is a result already if a process was killed before its study heard of it.
            report = TrialReport(trial, self.options.metric)
            error = train(run, report) if run.result() is None else ""
            with self._alone:
                self._end(trial, run, error, TrialState.PRUNED if report.pruned else TrialState.FAIL)
        except (KeyboardInterrupt, OSError):
            with self._alone:
                if not self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                    trial.set_user_attr("begun", trial.user_attrs["begun"][:-1])  # it was not killed
            raise
        finally:
            lock.release()
        free_memory()
        return "" if report.pruned else error

    def _end(self, trial: Trial, run: Run, error: str, state: TrialState = TrialState.FAIL) -> None:
        """Tell the study, which a trial with an error leaves in that `state`, and write the tables."""
        result = None if error else run.result()
        if result is None:
            trial.set_user_attr("error", error)
            self.study.tell(trial, state=state)
        elif result.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, result.best[self.options.metric])
        print(describe(self.study, run, trial.number, self.options.trials), flush=True)
        self._write()

    def _write(self) -> None:
        write_results(self.study, self._runs(), self.options.metric, self.command, self.folder)

    def _runs(self) -> list[Run]:
        return [self._run(trial.number, trial.params) for trial in self.study.get_trials(deepcopy=False)]
