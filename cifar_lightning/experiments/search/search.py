"""A search: trainings whose options Optuna draws from a space. `scripts/search SPACE --config CONFIG ...`.

T. Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019,
https://arxiv.org/abs/1907.10902. Each trial is a run of `lightning fit` in a folder of its own.
"""

import csv
import fcntl
import gc
import io
import logging
import math
import os
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any

import optuna
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from cifar_lightning.cli.main import CLI, DEBUG_VARIABLE, command
from cifar_lightning.errors import unknown_name
from cifar_lightning.experiments.search.options import Options, make_pruner, make_sampler
from cifar_lightning.experiments.search.space import SearchSpace, read_space
from cifar_lightning.files import write_whole
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule

#: Trials that are part of the study; a failed one is not.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
#: A process gives up after as many trials that failed, one after another.
FAILURES_IN_A_ROW = 3
#: Options that may differ from one process to another of the same study.
PLACE_OPTIONS = {"data.data_dir", "data.download", "trainer.accelerator", "trainer.devices"}
#: Options of `lightning fit` that have no dot.
FIT_OPTIONS = {"--config", "-c", "--seed_everything", "--ckpt_path", "--trainer", "--model", "--data"}


class TrialReport(Callback):
    """Report each validation to the study, and end a training that the pruner gives up, or that has diverged.

    It ends as by early stopping: with its checkpoints written, so that it can be evaluated and resumed.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.pruned = False
        self.value: float | None = None
        self._lowest, self._validations = math.inf, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask whether to go on."""
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loss, value = metrics["val_loss"], metrics[self.metric]
        diverged = not math.isfinite(loss)
        if loss < self._lowest:
            self._lowest, self.value = loss, value
        self.trial.report(math.nan if diverged else value, self._validations)
        self._validations += 1
        if diverged or self.trial.should_prune():
            self.pruned = trainer.should_stop = True
        if sys.__stdout__ is not None and sys.__stdout__.isatty():
            line = f"trial {self.trial.number}, validation {self._validations}: {self.metric} {value:.4f}"
            print(line, end="\r", file=sys.__stdout__, flush=True)


class _ParsedCLI(CLI):
    """Parses, and checks what can be checked without training."""

    def instantiate_classes(self) -> None:
        MLPClassifier(**self._subconfig.model.as_dict())
        CIFAR10DataModule(**self._subconfig.data.as_dict())

    def _run_subcommand(self, subcommand: str) -> None:
        pass


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
        self.arguments = ["fit", *arguments]
        base = self._check()
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self.study = self._open(base)

    # ------------------------------------------------------------------------------------------ before the trials

    def _check(self) -> dict[str, Any]:
        """Check options and space, and return the base config."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each trial warns for itself
            base = _ParsedCLI(self.arguments)._subconfig.as_flat()
            config = {name.replace(".init_args", ""): value for name, value in vars(base).items()}
            if config["trainer.devices"] == "auto":  # which would start a process for each GPU
                self.arguments.append("--trainer.devices=1")
            _refuse_what_can_not_act(config)
            for name in self.space.options:
                _check_name(name, config)
            for point in self.space.probes():
                flags = self.space.flags(point)
                try:
                    _ParsedCLI([*self.arguments, *flags])
                except ValueError as error:
                    raise ValueError(
                        f"wrong search space: expected to train with any of its points, received {' '.join(flags)}\n"
                        f"{error}"
                    ) from error
        return {name: str(value) for name, value in config.items() if name not in PLACE_OPTIONS | {"config"}}

    def _open(self, base: dict[str, Any]) -> Study:
        """Make the study, or go on with it if it is the same."""
        options = self.options
        place = options.storage or f"sqlite:///{self.folder / 'study.db'}"
        study = optuna.create_study(
            storage=RDBStorage(place) if "://" in place else JournalStorage(JournalFileBackend(place)),
            study_name=options.study,
            direction="maximize" if options.metric == "val_accuracy" else "minimize",
            sampler=make_sampler(options),
            pruner=make_pruner(options),
            load_if_exists=True,
        )
        mark = self.folder / ".study"  # by which processes see that they share the folder too
        if not mark.exists():
            mark.write_text(uuid.uuid4().hex)
        identity = {
            "metric": options.metric,
            "space": self.space.as_json(),
            **base,
            "folder": mark.read_text(),
        }
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

    # -------------------------------------------------------------------------------------------------- the trials

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
        folder = self._folder(trial.number)
        folder.mkdir()
        alive = (folder / ".running").open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
        return trial, alive

    def _fail_the_dead(self) -> None:
        """Mark as failed the trials whose process was killed: it holds their file's lock no more."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            try:
                with (self._folder(trial.number) / ".running").open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except FileNotFoundError:
                pass  # killed before it made the file
            self.study.tell(trial.number, state=TrialState.FAIL)
            (self._folder(trial.number) / ".running").unlink(missing_ok=True)
            print(f"trial {trial.number}  failed: its process was killed")

    def _train(self, trial: Trial, alive: IO[str]) -> str:
        """Train once, and tell the study what it came to; return the error if it failed, else ""."""
        folder, report = self._folder(trial.number), TrialReport(trial, self.options.metric)
        state, error, threads = TrialState.FAIL, "interrupted", torch.get_num_threads()
        try:
            with (folder / "log.txt").open("w", buffering=1) as log, redirect_stdout(log):
                CLI([*self.arguments, *self.space.flags(trial.params)], [report], folder)
            if report.pruned:
                state, error = TrialState.PRUNED, ""
            elif report.value is not None:
                state, error = TrialState.COMPLETE, ""
            else:
                error = f"no result: expected {self.options.metric} after an epoch, received none"
        except SystemExit as stop:
            if stop.code != 2:  # the parser's, which has said what is wrong
                raise
            error = f"options that do not parse: {' '.join(self.space.flags(trial.params))}"
        except Exception as exception:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            error = f"{type(exception).__name__}: {exception}".strip()
        finally:
            torch.set_num_threads(threads)  # which a training that fails leaves as it has chosen
            with self._alone():
                if error:
                    trial.set_user_attr("error", error)
                self.study.tell(trial, report.value if state == TrialState.COMPLETE else None, state=state)
                alive.close()
                (folder / ".running").unlink(missing_ok=True)
                self._say(trial.number)
                self.write_results()
        _free_memory()
        return error

    # ------------------------------------------------------------------------------------------------- the results

    def _say(self, number: int) -> None:
        """Print the line of a trial that has ended."""
        trials = self.study.get_trials(deepcopy=False)
        trial = trials[number]
        ended = len([t for t in trials if t.state in COUNTED and t.state != TrialState.RUNNING])
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        best = _best(self.study)
        value = f"{self.options.metric} {_figure(trial.value)}"
        if trial.state == TrialState.FAIL:
            value = str(trial.user_attrs["error"]).splitlines()[0]
        parts = [
            f"{ended}/{self.options.trials}",
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
        print("  ".join(parts), flush=True)

    def write_results(self) -> None:
        """Write trials.csv, best.yaml and the plots."""
        trials = self.study.get_trials(deepcopy=False)
        text, names = io.StringIO(), list(self.space.distributions)
        writer = csv.writer(text)
        writer.writerow(["number", "state", self.options.metric, "validations", "seconds", *names, "folder", "error"])
        for trial in trials:
            seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
            value = "" if trial.value is None else trial.value
            params = [trial.params.get(name, "") for name in names]
            error = trial.user_attrs.get("error", "")
            row = [trial.number, trial.state.name.lower(), value, len(trial.intermediate_values), seconds, *params]
            writer.writerow([*row, self._folder(trial.number).name, error])
        write_whole(self.folder / "trials.csv", text.getvalue().encode())
        best = _best(self.study)
        if best is None:
            return
        config = (self._folder(best.number) / "config.yaml").read_text()
        title = f"# Trial {best.number}, the best so far: {self.options.metric} {best.value!r}\n"
        write_whole(self.folder / "best.yaml", (title + config).encode())
        _draw(self.study, self.options.metric, self.folder)

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial_{number:03}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process is here."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _check_name(name: str, config: Mapping[str, Any]) -> None:
    """Check that an option exists; of a class's arguments, which depend on the class, the parser knows."""
    if any(key == name or key.startswith(f"{name}.") for key in config):
        return
    if f"{name.rpartition('.')[0]}.class_path" in config:
        return
    group = name.partition(".")[0]
    raise unknown_name(
        "option in the search space",
        name,
        [key for key in config if key.startswith(f"{group}.")] or ["model", "data", "trainer"],
    )


def _refuse_what_can_not_act(config: Mapping[str, Any]) -> None:
    devices = config["trainer.devices"]
    one = devices in ("auto", 1, "1") or (isinstance(devices, list) and len(devices) == 1)
    given: dict[str, tuple[Any, bool, Any]] = {
        "ckpt_path": (config["ckpt_path"], config["ckpt_path"] is None, "none"),
        "trainer.devices": (devices, one, "one: processes that share the study make use of several"),
        "trainer.num_nodes": (config["trainer.num_nodes"], config["trainer.num_nodes"] == 1, "1"),
        "trainer.fast_dev_run": (config["trainer.fast_dev_run"], not config["trainer.fast_dev_run"], "false"),
    }
    for name, (value, possible, expected) in given.items():
        if not possible:
            raise ValueError(f"--{name} is not for a search: expected {expected}; received {value}")


def _best(study: Study) -> FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if complete else None


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _free_memory() -> None:
    """Let go of the last trial: its images, its graphs, and the code that was compiled for them."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
        axes.figure.savefig(folder / f"{kind}.png", dpi=120, bbox_inches="tight")
        matplotlib.pyplot.close(axes.figure)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to the trials' own lines to say what goes on; warnings are still seen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "optuna")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The search's own arguments, and those of `lightning fit`: the options with a dot, and `FIT_OPTIONS`."""
    own: list[str] = []
    fit: list[str] = []
    part = own
    for argument in arguments:
        if argument.startswith("-") and not argument[1:2].isdigit():
            name = argument.partition("=")[0]
            part = fit if "." in name or name in FIT_OPTIONS else own
        part.append(argument)
    return own, fit


def main(args: list[str] | None = None) -> None:
    """Run the command line on `args`, by default those of the process.

    Raises:
        SystemExit: With status 2 for a user's mistake, after one message that says what is wrong.
    """
    own, fit = split_arguments(sys.argv[1:] if args is None else args)
    parser = ArgumentParser(
        prog="scripts/search",
        description="Train with options that Optuna draws from a space. All options of lightning fit are taken too: "
        "they hold for every trial. The same command again goes on with the study.",
    )
    parser.add_argument("space", type=str, help="YAML file of what varies; before any option")
    parser.add_class_arguments(Options)
    given = parser.parse_args(own).as_dict()
    with command(), _quiet():
        path = Path(given.pop("space"))
        options = Options(**given)
        folder = Path(options.out or Path("runs") / "search" / path.stem)
        search = Search(read_space(path), fit, options, folder)
        try:
            search.run()
        except (KeyboardInterrupt, SystemExit):
            print("interrupted; the same command goes on with the study", file=sys.stderr)
            raise SystemExit(1) from None
    trials = search.study.get_trials(deepcopy=False)
    counts = {s.name.lower(): sum(t.state == s for t in trials) for s in TrialState}
    print(f"{', '.join(f'{n} {name}' for name, n in counts.items() if n)}; everything is in {folder}")


if __name__ == "__main__":
    main()
