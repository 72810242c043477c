"""A run of a study or a search: its folder, and resuming it after it was stopped or killed."""

import itertools
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.run_folder import data_set_name
from cifar_lightning.cli.arguments import CommandLine, gather_lists, pair_flags
from cifar_lightning.cli.command import CTRL_C, TERMINATED
from cifar_lightning.cli.config_files import load_config, load_value
from cifar_lightning.cli.find_run import SAVED_CONFIG
from cifar_lightning.cli.main import CLI
from cifar_lightning.experiments.results import Result
from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.files import is_no_room, write_whole
from cifar_lightning.training.checkpoints import BestCheckpoint

#: Options that affect where a run executes but not its result: they may change when it is resumed.
PLACE_OPTIONS = {"data.data_dir", "data.download", "trainer.accelerator", "trainer.devices"}


@dataclass(frozen=True, eq=False)
class Run:
    """A training run and its folder.

    Args:
        name: What is compared, as in `Result`.
        title: The run's title, which distinguishes runs with the same name.
        out: The folder of all runs.
        place: The run's folder within it.
        arguments: The arguments of `cifar-lightning fit`.
        values: The values that a grid varies, by option; they are among `arguments` too.
    """

    name: str
    title: str
    out: Path
    place: str
    arguments: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder as an absolute path, since its checkpoints refer to each other."""
        return (self.out / self.place).absolute()

    @property
    def log(self) -> Path:
        """The file with the run's output."""
        return self.folder / "log.txt"

    @property
    def result_file(self) -> Path:
        """The file with a finished run's result."""
        return self.folder / "result.json"

    @property
    def lock(self) -> FileLock:
        """A lock held by the training process; the system releases it when that process ends or is killed."""
        return FileLock(self.folder / ".lock")

    def is_alive(self) -> bool:
        """Whether a process is training it."""
        if not self.folder.is_dir():
            return False
        try:
            with self.lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    # ------------------------------------------------------------------------------------------------- begun before

    def check(self) -> None:
        """Check the options against those that the folder's run was begun with.

        Raises:
            ValueError: If they differ.
        """
        noted, recipe = self._noted(), self._recipe()
        if not noted:
            return
        before, now = _by_option(noted.get("flags", [])), _by_option(recipe["flags"])
        changed = [
            f"{now.get(option, f'no --{option}')} instead of {before.get(option, 'none')}"
            for option in sorted(before.keys() | now.keys())
            if before.get(option) != now.get(option)
        ]
        changed += ["another config"] * (recipe["configs"] != noted.get("configs"))
        if changed:
            raise ValueError(
                f"the options of {self.title} have changed since it was run: expected those in {self._note}, or "
                f"another --out; got {', '.join(changed)}"
            )

    def prepare(self) -> None:
        """Create the folder, record the run's options in it, and discard unreadable files.

        Raises:
            ValueError: If the folder belongs to a run with other options.
        """
        self.check()
        if self._noted() == {}:
            self._set_aside()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._note, json.dumps(self._recipe(), indent=1).encode())
        try:
            self.result()
        except ValueError as broken:
            print(f"{broken}. The run does not count as finished")
            self.result_file.unlink()

    def result(self) -> Result | None:
        """The result; None if the run is not finished.

        Raises:
            ValueError: If the result file is broken.
        """
        return Result.load(self.result_file) if self.result_file.exists() else None

    @property
    def _note(self) -> Path:
        return self.folder / "recipe.json"

    def _noted(self) -> dict[str, Any] | None:
        """The recipe of what was trained here, {} if it can't be read; None if nothing was trained."""
        is_begun = any(path.exists() for path in (self.log, self.folder / "checkpoints", self.result_file))
        if not is_begun or not self._note.exists():
            return None
        try:
            return dict(json.loads(self._note.read_text()))
        except (ValueError, TypeError):  # incomplete
            return {}

    def _recipe(self) -> dict[str, Any]:
        """What must stay the same for the run to be resumed, as JSON values."""
        line = CommandLine(["fit", *self._split()[1]], ["fit"])
        recipe = {"flags": line.flags, "configs": [load_config(config) for config in line.configs]}
        return dict(json.loads(json.dumps(recipe, default=str)))

    def _split(self) -> tuple[list[str], list[str]]:
        """Split the arguments into those that may change when the run is resumed, and the rest."""
        places: list[str] = []
        rest: list[str] = []
        words = iter(self.arguments)
        for word in words:
            name, has_value, _ = word.partition("=")
            if name.removeprefix("--") in PLACE_OPTIONS:
                places.append(word if has_value else f"{word}={next(words, '')}")
            else:
                rest.append(word)
        return places, rest

    def _set_aside(self) -> None:
        names = (self.folder.with_name(f"{self.folder.name}.broken_{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        self.folder.rename(aside)
        print(
            f"{self._note} is broken. The run does not count as finished and starts again; its old files are in {aside}"
        )

    # ----------------------------------------------------------------------------------------------------- training

    def train(self, callbacks: Sequence[Callback] = (), test: bool = False) -> Result:
        """Train, resuming if the run was stopped, and optionally test the weights with the lowest validation loss.

        Raises:
            ValueError: If no epoch was validated.
        """
        self._keep_logs()
        cli = CLI(self.command(), callbacks, self.folder)
        trainer: Any = cli.trainer
        rows = RunReport.of(trainer).rows
        if not any("val_loss" in row for row in rows):
            raise ValueError(
                f"the run has no result: expected epochs with a validation loss, got {len(rows)} epochs without one"
            )
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), "")
        metrics = {}
        # There is no best if no loss was finite or without checkpoints, and a user's module may have no test step.
        if test and best and is_overridden("test_step", cli.model) and hasattr(cli.datamodule, "test_dataloader"):
            (metrics,) = trainer.test(cli.model, cli.datamodule, best, verbose=False, weights_only=True)
        seed = cli.subconfig.seed_everything
        return Result(
            name=self.name,
            seed=None if seed is False else seed,
            data_set=data_set_name(trainer),
            parameters=sum(parameter.numel() for parameter in cli.model.parameters() if parameter.requires_grad),
            folder=self.place,
            rows=rows,
            values=self.values,
            test_loss=metrics.get("test_loss", math.nan),
            test_accuracy=metrics.get("test_accuracy", math.nan),
        )

    def command(self) -> list[str]:
        """The arguments of `cifar-lightning`, which resume from a checkpoint if there is one."""
        for name in ("last", "best"):
            checkpoint = self.folder / "checkpoints" / f"{name}.ckpt"
            if checkpoint.exists() and (self.folder / SAVED_CONFIG).exists():
                try:
                    read_checkpoint(checkpoint, "module")
                except ValueError as broken:  # such as after a full disk
                    print(f"{broken}: not resumed")
                else:
                    return ["fit", f"--ckpt_path={checkpoint}", *self._split()[0]]
        return ["fit", *self.arguments]

    def _keep_logs(self) -> None:
        """Rename the metrics of an earlier attempt, which Lightning's logger would delete."""
        table = self.folder / "metrics.csv"
        if table.exists():
            before = len(list(self.folder.glob("metrics_*.csv")))
            table.rename(table.with_name(f"metrics_{before + 1}.csv"))


def _by_option(words: Sequence[str]) -> dict[str, str]:
    """Flags by option, in one spelling. Their order only counts within a class or a list, such as the callbacks."""
    options: dict[str, list[str]] = {}
    for name, text in pair_flags(gather_lists(list(words))):
        option = ".".join(name.removeprefix("--").split(".")[:2]).removesuffix("+")
        value = load_value(text)
        value = value if isinstance(value, str) else json.dumps(value, default=str)
        options.setdefault(option, []).append(f"{name}={value}")
    return {option: " ".join(flags) for option, flags in options.items()}


@contextmanager
def interruptible() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, exit with a line that says how to resume; add it to the message of a full disk.

    Raises:
        SystemExit: With status 130 or 143, after the line.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread can set a signal handler
    terminated: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        raise SystemExit(TERMINATED if terminated else CTRL_C) from None
    except OSError as error:
        if is_no_room(error):
            error.add_note("run the same command again to resume")
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence loggers below warnings; the runs print their own lines."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "optuna")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
