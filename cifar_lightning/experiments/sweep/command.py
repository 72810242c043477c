"""Train one network per combination of values, all at once, as in --vary "{model.lr: [0.02, 0.05]}"."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from cifar_lightning.callbacks.copies import CopyCheckpoints, SweepProgressBar
from cifar_lightning.callbacks.predictions import PredictionTable
from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.cli.arguments import CommandLine
from cifar_lightning.cli.command import command
from cifar_lightning.cli.find_run import SWEEP
from cifar_lightning.cli.follow_data import FOLLOWED
from cifar_lightning.cli.main import CLI
from cifar_lightning.cli.own_classes import class_paths
from cifar_lightning.cli.own_parser import OwnParser
from cifar_lightning.cli.run_folder import make_loggers
from cifar_lightning.experiments.check import one_device, options_by_name, refuse_given
from cifar_lightning.experiments.grid import Grid, Point, read_grid
from cifar_lightning.experiments.sweep.check import refuse_what_has_no_meaning
from cifar_lightning.experiments.sweep.points import make_copies, refuse_what_does_not_stack
from cifar_lightning.experiments.sweep.report import SweepReport
from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.copy_logger import CopyLogger
from cifar_lightning.training.network_class import CHECKPOINT_KEY
from cifar_lightning.training.stacked_classifier import StackedClassifier


class SweepCLI(CLI):
    """The command line of `fit`, but training one network per point of a grid.

    Args:
        args: The arguments of `fit`.
        grid: The grid; None for that of the resumed sweep.
        command: The whole command, for the table of results.
    """

    _trainings = SWEEP

    def __init__(self, args: list[str], grid: Grid | None, command: str) -> None:
        self.grid, self.command = grid, command
        super().__init__(["fit", *args])

    # --------------------------------------------------------------------------------------------------- parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the shared options, then those of each point."""
        if (model := self.classes["model"]) is not MLPClassifier:
            raise ValueError(f"a sweep needs --model MLPClassifier, got {model.__name__}")
        super().parse_arguments(parser, args)
        shared = options_by_name(self.subconfig)
        self.subconfig.trainer.devices = one_device(shared, "sweep", "its networks share one")
        if self.grid is not None:
            self.grid.check_names(shared)
            refuse_what_does_not_stack(self.grid.options)
            refuse_given(self.grid, self.line.arguments)
        if self.ckpt_path:
            stored = self.checkpoint["copies"]
            self._points = [(Point(c["name"], c["values"]), c["seed"], c["hyper_parameters"]) for c in stored]
            self._refuse_another_grid([c["values"] for c in stored])
        else:
            points = self.grid.points() if self.grid else []
            self._points = [(point, *self._parse_point(parser, point)) for point in points]

    def _find_checkpoint(self) -> str | None:
        """The file that --ckpt_path stands for, where "last" is that of the newest sweep of the configs."""
        if self.subconfig.ckpt_path == "best":
            raise ValueError(
                "a sweep has a best checkpoint for each network but none of its own: expected --ckpt_path last to "
                "resume it, got best"
            )
        return super()._find_checkpoint()

    def _read_checkpoint(self) -> dict[str, Any]:
        return read_checkpoint(Path(self.ckpt_path or ""), "sweep")

    def _parse_point(self, parser: LightningArgumentParser, point: Point) -> tuple[int, dict[str, Any]]:
        """A point's seed, and its classifier's arguments."""
        line, config = self.line, self.config
        self.line = CommandLine([*line.arguments, *point.flags], LightningCLI.subcommands())
        try:
            self._parse(parser)
            given = self._given.get("model", {})
            # (Options that follow from the data were set for all points at once.)
            followed = {name: config[config.subcommand].model[name] for name in FOLLOWED if name not in given}
            return self.subconfig.seed_everything, self.subconfig.model.as_dict() | followed
        finally:
            self.line, self.config = line, config

    def _refuse_another_grid(self, stored: Sequence[dict[str, Any]]) -> None:
        given = [point.values for point in self.grid.points()] if self.grid else stored
        if given != stored:
            raise ValueError(
                f"the grid has changed: expected no --vary, or the one that the sweep was started with, "
                f"{list(stored)}, got {given}"
            )

    # --------------------------------------------------------------------------------------------- instantiation

    def instantiate_classes(self) -> None:
        """Build the trainer, the data and the networks."""
        self._stoppers: list[EarlyStopping] = []
        super().instantiate_classes()
        if type(self.model) is not MLPClassifier:
            raise ValueError(
                f"a sweep needs an MLPClassifier, got {type(self.model).__name__}. A study trains any model: "
                "cifar-lightning study --vary"
            )
        copies = make_copies(self._points)
        self.model = StackedClassifier(self.model, copies, self._stoppers)
        if self.trainer.loggers and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.folder is not None, "it has been made"
            own = [CopyLogger(each, make_loggers(self.folder / each.name)) for each in copies]
            self.trainer.loggers = [*self.trainer.loggers, *own]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; early stopping is moved to the networks."""
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        trainer.callbacks = [callback for callback in callbacks if callback not in self._stoppers]  # type: ignore[attr-defined]
        refuse_what_has_no_meaning(trainer, trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    @property
    def _kind(self) -> str:
        return SWEEP

    def _make_callbacks(self, config: Namespace) -> list[Callback]:
        """The callbacks of every sweep, instead of those of a single run."""
        callbacks: list[Callback] = []
        for callback in super()._make_callbacks(config):
            match callback:
                case RunReport():
                    callbacks.append(SweepReport(self.command))
                case BestCheckpoint():
                    callbacks.append(CopyCheckpoints({CHECKPOINT_KEY: class_paths(self.classes)}))
                case LastCheckpoint():
                    callbacks.append(LastCheckpoint("sweep"))
                case RunProgressBar():
                    callbacks.append(SweepProgressBar())
                case PredictionTable():
                    pass
                case _:
                    callbacks.append(callback)
        return callbacks


def make_parser() -> OwnParser:
    """The parser of the options of `sweep` itself; it takes those of `fit` too."""
    parser = OwnParser(command="sweep", description=__doc__)
    parser.add_argument(
        "--vary",
        type=str | None,
        help="the options to vary: YAML, inline or in a file, such as {model.lr: [0.02, 0.05]}; leave out to resume",
    )
    return parser


def main(args: list[str]) -> None:
    """Run a sweep.

    Raises:
        SystemExit: With status 2 on a user error, after one message.
    """
    own, fit = make_parser().split(args)
    vary = own.vary
    with command():
        if vary is None and not any(word.partition("=")[0] == "--ckpt_path" for word in fit):
            raise ValueError(
                "nothing to sweep: expected --vary, as in --vary '{model.lr: [0.02, 0.05]}', or the --ckpt_path of a "
                "sweep to resume, got neither"
            )
        SweepCLI(fit, None if vary is None else read_grid(vary), shlex.join(["cifar-lightning", "sweep", *args]))
