"""The command line: `lightning fit --config configs/one_cycle.yaml`."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint  # noqa: F401 (short names)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.callbacks.freeze_pretrained import FreezePretrained  # noqa: F401 (short name)
from cifar_lightning.callbacks.lr_finder import LRFinder  # noqa: F401 (short name)
from cifar_lightning.callbacks.predictions import PredictionTable
from cifar_lightning.callbacks.pretrained import Pretrained
from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.callbacks.schedule_plot import SchedulePlot  # noqa: F401 (short name)
from cifar_lightning.callbacks.signal_picture import SignalPicture  # noqa: F401 (short name)
from cifar_lightning.cli import checkpoint_options as options
from cifar_lightning.cli.arguments import configs_first, gather_lists, without_configs
from cifar_lightning.cli.run_folder import discard_if_never_begun, make_loggers, make_run_folder
from cifar_lightning.experiments.sweep import Sweep  # noqa: F401 (short name)
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint, read_checkpoint
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.cycle import Cycle
from cifar_lightning.training.datamodule import CIFAR10DataModule
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.resume import ExactResume

RUNS = "runs"
#: Set to see the traceback of an error that is reported in one message.
DEBUG_VARIABLE = "CIFAR_LIGHTNING_DEBUG"

set_parsing_settings(add_print_completion_argument=True)  # --print_completion shtab-bash


class Parser(LightningArgumentParser):
    """The parser, with errors in the words of this package's options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a clean message and exit with status 2."""
        if "model.optimizer" in message and "Option 'lr' is not accepted" in message:
            message = (
                "a second learning rate inside the optimizer's arguments: expected the one rate as --model.lr, "
                "received --model.optimizer.lr (or init_args.lr)"
            )
        super().error(message, ex)


class CLI(LightningCLI):
    """`LightningCLI` with a folder of its own for each run, and checkpoints that can't be contradicted in silence.

    Args:
        args: The command line's arguments; by default those of the process.
        callbacks: More callbacks, which the saved config does not name.
        folder: The run's folder, which exists; by default a new one.
    """

    def __init__(self, args: ArgsType = None, callbacks: Sequence[Callback] = (), folder: Path | None = None) -> None:
        self.ckpt_path: str | None = None
        self.checkpoint: dict[str, Any] = {}
        self.callbacks = callbacks
        self.folder = folder
        try:
            self.arguments = configs_first(gather_lists(list(sys.argv[1:] if args is None else args)))
            super().__init__(
                MLPClassifier,
                CIFAR10DataModule,
                args=args,
                parser_class=Parser,
                seed_everything_default=42,
                auto_configure_optimizers=False,
                trainer_defaults={"max_epochs": 100},
            )
        except BaseException:
            if self.folder is not None:
                discard_if_never_begun(self.folder)
            raise

    # ------------------------------------------------------------------------------------------------- parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """The one that the command line begins with, or else all: each has a parser of its own, which takes long."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in self.arguments[:1] if name in every} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups of options that are no hyperparameters, each of the class that acts on it."""
        parser.add_class_arguments(Executor, "execution")
        parser.add_class_arguments(Cycle, "cycle")
        parser.add_lightning_class_args(Pretrained, "pretrained")
        parser.add_lightning_class_args(EvaluationReport, "evaluation")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a resume without a config takes the one of the run that it resumes."""
        self.config = parser.parse_args(self.arguments)
        subcommand: str = self.config.subcommand
        self.ckpt_path = self._find_checkpoint()
        if self.ckpt_path and subcommand == "fit" and not self.subconfig.config:
            config = Path(self.ckpt_path).parent.parent / "config.yaml"
            if not config.is_file():
                raise ValueError(
                    f"a resume without a config: expected --config, or {config} as the run has left it; "
                    "received neither"
                )
            self.arguments[1:1] = ["--config", str(config)]
            self.config = parser.parse_args(self.arguments)
        # A training goes by its configs, but an evaluation may name one only to say which run is meant.
        given = self.arguments if subcommand == "fit" else without_configs(self.arguments)
        self._given = parser.parse_args(given, defaults=False)[subcommand].as_dict()
        evaluation, pretrained = self.subconfig.evaluation, self.subconfig.pretrained
        evaluation.ensemble = options.find_members(evaluation.ensemble or [], self.ckpt_path or "")
        if pretrained.checkpoint is not None and subcommand == "fit":
            pretrained.checkpoint = options.find_pretrained(pretrained.checkpoint)
            if not self.ckpt_path:
                read_checkpoint(Path(pretrained.checkpoint))  # or an error, before anything is written
        options.refuse_what_can_not_act(self.subconfig.as_dict(), self._given, subcommand)
        if self.ckpt_path:
            self._take_options_of_checkpoint()
        # Lightning would let the checkpoint's hyperparameters override the command line's if it saw the path now.
        self.subconfig.ckpt_path = None

    @property
    def subconfig(self) -> Namespace:
        """The options of the subcommand."""
        config: Namespace = self.config[self.config.subcommand]
        return config

    def _find_checkpoint(self) -> str | None:
        named, ensemble = self.subconfig.ckpt_path, self.subconfig.evaluation.ensemble
        if named is None and ensemble:
            named = ensemble[0]
        return options.find_checkpoint(named, self.config.subcommand, self._root / self._config_name)

    def _take_options_of_checkpoint(self) -> None:
        """Take what is not given from the checkpoint."""
        self.checkpoint = read_checkpoint(Path(self.ckpt_path or ""))
        options.forget_what_a_finder_replaced(self._given, self.checkpoint)
        stored = options.options_of(self.checkpoint, self.subconfig.data.as_dict())
        taken = options.without_given(stored, self._given)
        self.config = self.parser.parse_object({self.config.subcommand: taken}, self.config)

    # ------------------------------------------------------------------------------------------- instantiation

    def before_instantiate_classes(self) -> None:
        """Give the trainer's method its arguments, and the classifier the primitives that its checkpoints store."""
        self.subconfig.ckpt_path = self.ckpt_path
        match self.subcommand:
            case "predict":
                self.subconfig.return_predictions = False  # they are streamed into a table
            case "validate" | "test":
                self.subconfig.verbose = False  # our table says it

        def build(cls: type[MLPClassifier], *args: Any, **kwargs: Any) -> MLPClassifier:
            return cls(**self.subconfig.model.as_dict())

        self.parser.add_instantiator(build, MLPClassifier, subclasses=False)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        super().instantiate_classes()
        built = self.config_init[self.subcommand]
        self.model.executor, self.model.cycle = built.execution, built.cycle
        if self.checkpoint:
            used = {
                "model": dict(self.model.hparams),
                "data": dict(self.datamodule.hparams),
                "pretrained": {k: v for k, v in self.subconfig.pretrained.as_dict().items() if v is not None},
            }
            options.refuse_contradictions(self._given, used, self.checkpoint, str(self.subcommand))
            built.pretrained.checkpoint = None  # the checkpoint has its layers, so their file may be gone
            options.check_members(self.subconfig.evaluation.ensemble or [], self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the callbacks and loggers that every run has, in a folder of its own."""
        built = self.config_init[self.subcommand]
        config = built.trainer
        self.predictions = PredictionTable(built.evaluation)
        callbacks: list[Callback] = [RunReport(), ExactResume(), self.predictions, *self.callbacks]
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            callbacks += [BestCheckpoint(), LastCheckpoint()]
        if self.subcommand != "fit":  # evaluations need none of the training's callbacks
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks.*")
        if config.enable_progress_bar is not False:
            callbacks.insert(0, RunProgressBar())  # first, so that it stops before the others print
        self.trainer_defaults["callbacks"] = callbacks
        kind = "" if self.subcommand == "fit" else f"{self.subcommand}_"
        if self.folder is None:
            self.folder = make_run_folder(self._root / self._config_name, kind, keep=not config.fast_dev_run)
        if config.logger in (None, True):
            kwargs["logger"] = make_loggers(self.folder)
        return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)

    def after_predict(self) -> None:
        """Exit with status 1 if an image was skipped.

        Raises:
            SystemExit: If so.
        """
        if self.predictions.broken:
            raise SystemExit(1)

    # -------------------------------------------------------------------------------------------------- names

    @property
    def _root(self) -> Path:
        return Path(self.subconfig.trainer.default_root_dir or RUNS)

    @property
    def _config_name(self) -> str:
        """The names of the configs, or of the run that a checkpoint is from."""
        configs = [Path(str(path)) for path in self.subconfig.config or []]
        named = self.ckpt_path or self.subconfig.ckpt_path
        if named not in (None, "best", "last"):
            checkpoint = Path(named).absolute()
            if checkpoint.parent.name != "checkpoints" and not configs:
                return checkpoint.stem
            run = checkpoint.parent.parent
            if not configs or run / "config.yaml" in [path.absolute() for path in configs]:
                return run.parent.name
        return "+".join(path.stem for path in configs) or "default"


def _silence_what_does_not_concern_the_user() -> None:
    for message in (
        ".*does not have many workers.*",  # the whole data set is in memory: workers would only add their cost
        "Experiment logs directory .* exists and is not empty.*",  # it holds the run's config already
        ".*LeafSpec.* is deprecated.*",  # inside of Lightning
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip: " not in record.getMessage()  # advertisements
    )


@contextmanager
def command() -> Iterator[None]:
    """Set the process up for a command, and end it in one message on a user's mistake.

    Raises:
        SystemExit: With status 2 for a user's mistake, after the message.
    """
    _silence_what_does_not_concern_the_user()
    # Units that died leave gradients' running means that shrink for ever, and denormal numbers take a hundred times as
    # long. Here, because threads inherit it from the one that starts them.
    torch.set_flush_denormal(True)
    try:
        yield
    except (ValueError, OSError, MisconfigurationException, RuntimeError) as error:
        # Lightning reports some mistakes of its user, such as early stopping without validation, by a RuntimeError.
        if isinstance(error, RuntimeError) and "conditioned on metric" not in str(error):
            raise
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"error: {error}\n({DEBUG_VARIABLE}=1 shows the traceback)", file=sys.stderr)
        raise SystemExit(2) from None


def main(args: list[str] | None = None) -> None:
    """Run the command line on `args`, by default those of the process."""
    with command():
        CLI(args)
