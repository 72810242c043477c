"""One run of a study, in a process of its own: train, test at the best epoch, and keep what came of it."""

import fcntl
import math
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.run_folder import run_folder
from cifar_lightning.cli.command import command
from cifar_lightning.cli.main import CLI
from cifar_lightning.experiments.study.results import Result
from cifar_lightning.files import write_whole
from cifar_lightning.training.checkpoints import BestCheckpoint, read_checkpoint


@dataclass(frozen=True)
class Run:
    """A config trained with a seed.

    Args:
        config: The config's file.
        seed: The seed.
        out: The study's folder.
        flags: Further options of `lightning fit`.
    """

    config: Path
    seed: int
    out: Path
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.config.stem}, seed {self.seed}"

    @property
    def root(self) -> Path:
        """Where `lightning fit` makes folders for all configs of this seed."""
        return self.out / f"seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it makes those of this config."""
        return self.root / self.config.stem

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "log.txt"

    @property
    def result(self) -> Path:
        """Where a finished run's result is."""
        return self.folder / "result.json"

    def prepare(self) -> None:
        """Make the folder, and take note of what is run in it.

        Raises:
            ValueError: If something else was run in it.
        """
        recipe = "\n".join([f"# {' '.join(self.flags)}", self.config.read_text()])
        note = self.folder / "recipe.yaml"
        if note.exists() and note.read_text() != recipe:
            raise ValueError(
                f"{self.config} or its flags have changed since it was run: expected those of {note}, or another "
                "--out; received others"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(note, recipe.encode())

    def arguments(self) -> list[str]:
        """What `lightning` is called with: to go on with what was stopped, if there is a checkpoint of it."""
        place = f"--trainer.default_root_dir={self.root}"
        stopped = self.folder.glob("*/checkpoints/last.ckpt")
        for checkpoint in sorted(stopped, key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                read_checkpoint(checkpoint)
            except ValueError as broken:  # as a full disk leaves it
                print(f"{broken}: not resumed")
            else:
                return ["fit", f"--ckpt_path={checkpoint}", place]
        return [
            "fit",
            f"--config={self.config}",
            f"--seed_everything={self.seed}",
            "--trainer.enable_progress_bar=false",
            *self.flags,
            place,
        ]


def execute(run: Run) -> None:
    """Train and test, unless another process has, printing into `run.log`; the process exits with 1 if it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study itself stops its runs
    with run.log.open("a") as log, (run.folder / "lock").open("w") as lock:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        # Held by whoever is at it, be it a run that has outlived its study: wait for it, and take its result.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if run.result.exists():
            return
        log.truncate(0)  # what an earlier attempt has said is not this one's
        try:
            with command():
                train_and_test(run).save(run.result)
        except Exception as error:
            traceback.print_exc()
            print(f"error: {type(error).__name__}: {error}")
            sys.exit(1)


def train_and_test(run: Run) -> Result:
    """Train, and test the weights of the lowest validation loss."""
    cli = CLI(run.arguments())
    trainer: Any = cli.trainer
    rows = next(callback.rows for callback in trainer.callbacks if isinstance(callback, RunReport))
    if not any("val_loss" in row for row in rows):
        raise ValueError(
            f"no result of a run: expected training epochs with a validation loss, received {len(rows)} epochs, none "
            "with one"
        )
    best = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), "")
    metrics = {}
    if best:  # there is none if no loss was finite, or if there are no checkpoints
        (metrics,) = trainer.test(cli.model, cli.datamodule, best, verbose=False, weights_only=True)
    return Result(
        config=run.config.stem,
        seed=run.seed,
        data_set=cli.datamodule.data_set,
        parameters=sum(parameter.numel() for parameter in cli.model.parameters() if parameter.requires_grad),
        folder=str(run_folder(trainer).absolute().relative_to(run.out.absolute())),
        rows=rows,
        test_loss=metrics.get("test_loss", math.nan),
        test_accuracy=metrics.get("test_accuracy", math.nan),
    )
