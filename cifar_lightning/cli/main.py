"""The command line: `cifar-lightning fit --config one_cycle`."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.callbacks.predictions import PredictionTable
from cifar_lightning.callbacks.pretrained import Pretrained
from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.run_folder import RunFolder
from cifar_lightning.callbacks.run_summary import RunSummary
from cifar_lightning.cli import checkpoint_options as options
from cifar_lightning.cli import short_names  # noqa: F401
from cifar_lightning.cli.arguments import CommandLine, gather_lists
from cifar_lightning.cli.class_checks import check_stored_classes
from cifar_lightning.cli.class_options import drop_arguments_of_other_classes
from cifar_lightning.cli.command import command
from cifar_lightning.cli.devices import check_devices
from cifar_lightning.cli.find_run import SAVED_CONFIG, fingerprint, own_fingerprints
from cifar_lightning.cli.follow_data import follow_data
from cifar_lightning.cli.own_classes import (
    GROUPS,
    choose_classes,
    class_paths,
    keep_options,
    own_class_paths,
    without_classes,
)
from cifar_lightning.cli.parser import Parser, end
from cifar_lightning.cli.run_folder import RUNS, end_in_failure, make_loggers, make_run_folder, name_of_runs
from cifar_lightning.cli.save_config import SaveRunConfig
from cifar_lightning.export.checkpoint_files import read_checkpoint
from cifar_lightning.optim.class_paths import public_path
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.checks import check_callbacks
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.cycle import Cycle
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.interrupt import LoneTermination
from cifar_lightning.training.resume import ExactResume
from cifar_lightning.training.whole_checkpoints import WholeCheckpoints


class CLI(LightningCLI):
    """`LightningCLI` with a separate folder for each run, in which options never silently contradict a checkpoint.

    Args:
        args: The command line's arguments; those of the process by default.
        callbacks: Additional callbacks, which are left out of the saved config.
        folder: The run's folder, which must exist; a new one by default.
    """

    #: The kind of run that `--ckpt_path best` and `last` refer to, as the prefix of its folder's name.
    _trainings = ""

    def __init__(self, args: ArgsType = None, callbacks: Sequence[Callback] = (), folder: Path | None = None) -> None:
        self.ckpt_path: str | None = None
        self.checkpoint: dict[str, Any] = {}
        self.callbacks, self.folder = [LoneTermination(), *callbacks], folder
        try:
            self._read(list(sys.argv[1:] if args is None else args))
            super().__init__(
                self.classes["model"],
                self.classes["data"],
                args=args,
                save_config_callback=SaveRunConfig,
                parser_kwargs={"prog": "cifar-lightning"},
                parser_class=Parser,
                seed_everything_default=42,
                auto_configure_optimizers=False,
                trainer_defaults={"max_epochs": 100},
            )
        except BaseException as error:
            if self.folder is not None:
                end_in_failure(self.folder, error, remove=folder is None)  # a folder passed in is not ours to remove
            raise

    # ------------------------------------------------------------------------------------------------- parsing

    def _read(self, args: list[str]) -> None:
        """Read what must be known before there is a parser: the command and the classes of model and data."""
        try:
            self.line = CommandLine(gather_lists(args), LightningCLI.subcommands())
            root = Path(str(self.line.value_of("trainer.default_root_dir") or RUNS))
            self.classes = choose_classes(self.line, options.peek_at_checkpoint(self.line, root, self._trainings))
        except ValueError as error:
            end(str(error), next((word for word in args if word in LightningCLI.subcommands()), ""), error)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """The command line's subcommand, or all of them: making a parser for each takes long."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in self.line.head[-1:] if name in every} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the option groups that are not hyperparameters, each for the class that uses it."""
        assert isinstance(parser, Parser), "it is the parser_class"
        parser.has_our_model = self._is_ours
        parser.add_own_classes(own_class_paths(self.classes))
        parser.add_class_arguments(Executor, "execution")
        parser.add_class_arguments(Cycle, "cycle")
        parser.add_lightning_class_args(Pretrained, "pretrained")
        parser.add_lightning_class_args(EvaluationReport, "evaluation")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; resuming without a config uses the config of the resumed run."""
        self._parse(parser)
        subcommand: str = self.config.subcommand
        self._fingerprints = [fingerprint(self.line.configs)]
        self.ckpt_path = self._find_checkpoint()
        if self.ckpt_path and subcommand == "fit" and not self.line.configs:
            self._take_config_of_resumed_run(parser, Path(self.ckpt_path).parent.parent)
        # For `fit`, configs count as given; an evaluation may name one only to say which run is meant.
        given = self.line.arguments if subcommand == "fit" else self.line.without_configs
        self._given = parser.parse_args(without_classes(given), defaults=False)[subcommand].as_dict()
        if not self._is_ours:
            defaults = self._subcommand_parsers[subcommand].get_defaults().as_dict()
            options.refuse_what_only_ours_can(self._given, defaults, public_path(self.classes["model"]))
        evaluation, pretrained = self.subconfig.evaluation, self.subconfig.pretrained
        evaluation.ensemble = options.find_members(evaluation.ensemble or [], self.ckpt_path or "")
        if pretrained.checkpoint is not None and subcommand == "fit":
            pretrained.checkpoint = options.find_pretrained(pretrained.checkpoint)
            if not self.ckpt_path:
                read_checkpoint(Path(pretrained.checkpoint))  # raises before anything is written
        options.refuse_what_can_not_act(self.subconfig.as_dict(), self._given, subcommand)
        if self.ckpt_path:
            self._take_options_of_checkpoint()
        elif self._is_ours:
            follow_data(self.subconfig, self._given, self.classes["data"])
        self._subcommand_parsers[subcommand].check_needed(self.subconfig)  # type: ignore[attr-defined]
        # Lightning would let the checkpoint's hyperparameters override the command line's if it saw the path now.
        self.subconfig.ckpt_path = None

    def _parse(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser), "it is the parser_class"
        parser.check(self.line, self._subcommand_parsers)
        self.config = parser.parse_args(without_classes(self.line.arguments))
        if self._is_ours:
            drop_arguments_of_other_classes(self.subconfig, self.line)

    def _take_config_of_resumed_run(self, parser: LightningArgumentParser, run: Path) -> None:
        if not (config := run / SAVED_CONFIG).is_file():
            raise ValueError(
                f"cannot resume without a config: expected --config, or the run's own {config}, got neither"
            )
        self.line.add_config(str(config))
        self._fingerprints = [fingerprint(self.line.configs), *own_fingerprints(run)]
        self._parse(parser)

    @property
    def _is_ours(self) -> bool:
        """Whether the model is an `MLPClassifier` rather than another LightningModule."""
        return issubclass(self.classes["model"], MLPClassifier)

    def _options_of(self, group: str) -> dict[str, Any]:
        """The options of model or data; {} for a class without options."""
        options: Namespace | None = self.subconfig.get(group)
        return dict(options.as_dict()) if options else {}

    @property
    def subconfig(self) -> Namespace:
        """The options of the subcommand."""
        config: Namespace = self.config[self.config.subcommand]
        return config

    @property
    def _root(self) -> Path:
        return Path(self.subconfig.trainer.default_root_dir or RUNS)

    def _find_checkpoint(self) -> str | None:
        named, ensemble = self.subconfig.ckpt_path, self.subconfig.evaluation.ensemble
        if named is None and ensemble and self.config.subcommand != "fit":
            named = (options.find_members(ensemble, "") or ensemble)[0]
        return options.find_checkpoint(named, self.config.subcommand, self.line.configs, self._root, self._trainings)

    def _take_options_of_checkpoint(self) -> None:
        """Take the options that are not given from the checkpoint."""
        self.checkpoint = self._read_checkpoint()
        options.forget_what_a_finder_replaced(self._given, self.checkpoint)
        stored = options.options_of(self.checkpoint, {group: self._options_of(group) for group in GROUPS})
        if self._is_ours:
            check_stored_classes(stored)
        taken = options.without_given(stored, self._given)
        self.config = self.parser.parse_object({self.config.subcommand: taken}, self.config)

    def _read_checkpoint(self) -> dict[str, Any]:
        return read_checkpoint(Path(self.ckpt_path or ""), "network" if self._is_ours else "module")

    # ------------------------------------------------------------------------------------------- instantiation

    def before_instantiate_classes(self) -> None:
        """Pass the trainer's method its arguments, and the classifier the primitives that its checkpoints store."""
        self.subconfig.ckpt_path = self.ckpt_path
        if self.subcommand == "predict":
            self.subconfig.return_predictions = False  # they are streamed into a table
        if self.subcommand in ("validate", "test"):
            self.subconfig.verbose = not self._is_ours  # our table says it

        def build(cls: type[MLPClassifier], *args: Any, **kwargs: Any) -> MLPClassifier:
            primitives = self._options_of("model")
            return cls(**kwargs | {name: primitives[name] for name in ("optimizer", "schedule") if name in primitives})

        if self._is_ours:
            self.parser.add_instantiator(build, self.classes["model"], subclasses=False)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        super().instantiate_classes()
        built = self.config_init[self.subcommand]
        if isinstance(self.model, MLPClassifier):
            self.model.executor, self.model.cycle = built.execution, built.cycle
        for group in own_class_paths(self.classes):
            keep_options(built[group], self._options_of(group))
        if self.checkpoint:
            used = {
                "model": dict(self.model.hparams),
                "data": dict(self.datamodule.hparams),
                "pretrained": {k: v for k, v in self.subconfig.pretrained.as_dict().items() if v is not None},
            }
            options.forget_what_other_devices_replace(self._given, self.checkpoint, self.trainer.world_size)
            options.refuse_contradictions(self._given, used, self.checkpoint, str(self.subcommand))
            built.pretrained.checkpoint = None  # the checkpoint includes its layers; the file may be gone

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the callbacks and loggers of every run, in a new folder."""
        config = self.config_init[self.subcommand].trainer
        check_devices(config.accelerator, config.devices)
        if self.folder is None:
            name = name_of_runs(self.line.configs, self.ckpt_path)
            self.folder = make_run_folder(self._root / name, self._kind, keep=not config.fast_dev_run)
        if self.subcommand != "fit":  # evaluations don't need the callbacks used in training
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks.*")
        if config.logger in (None, True) and not config.barebones:
            kwargs["logger"] = make_loggers(self.folder)
        self.trainer_defaults["callbacks"] = self._make_callbacks(config)
        self.save_config_kwargs |= {"fingerprints": self._fingerprints, "arguments": self.line.arguments}
        self.save_config_kwargs["class_paths"] = class_paths(self.classes)
        trainer = super().instantiate_trainer(default_root_dir=str(self.folder), enable_model_summary=False, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        if self.subcommand == "fit" and self._is_ours:
            check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.folder / "checkpoints")
        return trainer

    @property
    def _kind(self) -> str:
        """The prefix of the run folder's name."""
        return "" if self.subcommand == "fit" else f"{self.subcommand}_"

    def _make_callbacks(self, config: Namespace) -> list[Callback]:
        """The callbacks of every run, unless the trainer's options disable or replace them."""
        assert self.folder is not None, "`instantiate_trainer` sets it"
        self.predictions = PredictionTable(self.config_init[self.subcommand].evaluation)
        callbacks = [RunFolder(self.folder), RunReport(), ExactResume(), self.predictions, *self.callbacks]
        saves = config.enable_checkpointing is not False and not config.barebones and not config.fast_dev_run
        if self.subcommand == "fit" and saves:
            callbacks += [BestCheckpoint(), LastCheckpoint()]
        if config.enable_model_summary is not False and not config.barebones:  # in the place of Lightning's table
            callbacks.append(RunSummary())
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        is_given = any(isinstance(callback, ProgressBar) for callback in given)
        if not (config.enable_progress_bar is False or config.barebones or is_given):
            callbacks.insert(0, RunProgressBar())  # first, so it stops before the others print
        return callbacks

    def after_predict(self) -> None:
        """Exit with status 1 if an image was skipped.

        Raises:
            SystemExit: If one was.
        """
        if self.predictions.broken:
            raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Run the command line with `args`; those of the process by default."""
    with command():
        CLI(args)
