"""The command line: `lightning fit --config configs/one_cycle.yaml`."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
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
from cifar_lightning.callbacks.report import RunProgressBar, RunReport
from cifar_lightning.callbacks.schedule_plot import SchedulePlot  # noqa: F401 (short name)
from cifar_lightning.callbacks.signal_picture import SignalPicture  # noqa: F401 (short name)
from cifar_lightning.cli.arguments import configs_first, gather_lists, without_configs
from cifar_lightning.cli.run_folder import discard_if_never_begun, make_loggers, make_run_folder, read_checkpoint
from cifar_lightning.experiments.sweep import Sweep  # noqa: F401 (short name)
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule
from cifar_lightning.training.resume import BestAndLast, ExactResume

RUNS = "runs"
#: Set to see the traceback of an error that is reported in one message.
DEBUG_VARIABLE = "CIFAR_LIGHTNING_DEBUG"

#: Data options that say where the data is found, and not what a network was trained on.
PLACE_OPTIONS = {"data_dir", "download"}
#: Data options that a checkpoint's network depends on even when it is only evaluated.
NETWORK_OPTIONS = {"classes", "scaling"}


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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a resume without a config takes the one of the run that it resumes."""
        arguments = self.arguments
        self.config = parser.parse_args(arguments)
        self._subconfig.ckpt_path = checkpoint = self._find_checkpoint()
        if checkpoint and self.config.subcommand == "fit" and not self._subconfig.config:
            config = Path(checkpoint).parent.parent / "config.yaml"
            if not config.is_file():
                raise ValueError(
                    f"a resume without a config: expected --config, or {config} as the run has left it; "
                    "received neither"
                )
            arguments[1:1] = ["--config", str(config)]
            self.config = parser.parse_args(arguments)
            self._subconfig.ckpt_path = checkpoint
        # A training goes by its configs, but an evaluation may name one only to say which run is meant.
        given = arguments if self.config.subcommand == "fit" else without_configs(arguments)
        self._explicit = parser.parse_args(given, defaults=False)[self.config.subcommand]
        self._resolve_ensemble()
        self._resolve_pretrained()
        self._refuse_what_can_not_act()

    @property
    def _subconfig(self) -> Namespace:
        config: Namespace = self.config[self.config.subcommand]
        return config

    def _find_checkpoint(self) -> str | None:
        """The file that --ckpt_path means, where "best" and "last" are those of the newest run of the config.

        Raises:
            ValueError: If it does not exist, or if an evaluation names none.
        """
        named, subcommand = self._subconfig.ckpt_path, self.config.subcommand
        ensemble = self._subconfig.model.ensemble
        if named is None and ensemble:
            named = ensemble[0]
        if named is None:
            if subcommand == "fit":
                return None
            raise ValueError(
                f"nothing to {subcommand}: expected a trained network, --ckpt_path FILE (or best or last, with the "
                f"--config it was trained with); received no --ckpt_path"
            )
        if named in ("best", "last"):
            runs = self._root / self._config_name
            found = sorted(runs.glob(f"*/checkpoints/{named}.ckpt"), key=lambda path: path.stat().st_mtime)
            if not found:
                raise ValueError(f"no checkpoint: expected {runs}/*/checkpoints/{named}.ckpt, received none")
            return str(found[-1])
        if not Path(named).is_file():
            raise ValueError(f"no checkpoint: expected a file, best or last; received {named!r}")
        return str(named)

    def _resolve_ensemble(self) -> None:
        """The other members of the ensemble, as files; the checkpoint itself is one of it anyway."""
        members = [path for name in self._subconfig.model.ensemble or [] for path in sorted(glob(name)) or [name]]
        for path in members:
            if not Path(path).is_file():
                raise ValueError(f"no checkpoint: expected the file of a member of the ensemble, received {path!r}")
        itself = Path(self._subconfig.ckpt_path or "").absolute()
        self._subconfig.model.ensemble = [path for path in members if Path(path).absolute() != itself] or None

    def _resolve_pretrained(self) -> None:
        """The pretrained network as a file, the newest that matches; a checkpoint has its layers, and needs none."""
        named = self._subconfig.model.pretrained
        if named is not None and self.config.subcommand == "fit":
            path = max(glob(named), key=os.path.getmtime, default=named)
            if not self._subconfig.ckpt_path:
                read_checkpoint(Path(path))  # or else an error, before anything is written
            self._subconfig.model.pretrained = path

    def _refuse_what_can_not_act(self) -> None:
        model, subcommand = self._subconfig.model, self.config.subcommand
        acts = {
            "mc_samples": ("validate", "test", "predict"),
            "ensemble": ("validate", "test", "predict"),
            "calibrate": ("validate",),
        }
        for name, where in acts.items():
            if model[name] and subcommand not in where:
                raise ValueError(
                    f"--model.{name} does nothing here: expected it with {' or '.join(where)}, received {subcommand}"
                )
        if subcommand == "predict" and model.mc_samples and model.ensemble:
            raise ValueError("two ways to predict: expected --model.mc_samples or --model.ensemble, received both")
        if self._explicit.get("model.pretrained") and subcommand != "fit":
            raise ValueError(f"--model.pretrained does nothing here: expected it with fit, received {subcommand}")
        if self._subconfig.data.images is not None and subcommand != "predict":
            raise ValueError(f"--data.images does nothing here: expected it with predict, received {subcommand}")

    def _check_members(self) -> None:
        """Check that the members of an ensemble tell the same classes apart."""
        for path in self.model.ensemble:
            member = read_checkpoint(Path(path))
            expected, received = self.checkpoint.get("classes"), member.get("classes")
            if expected != received:
                raise ValueError(f"{path} has other classes: expected {expected}, received {received}")

    def _parse_ckpt_path(self) -> None:
        """Take what is not given from the checkpoint's hyperparameters; what is given must not contradict them."""
        path = self._subconfig.ckpt_path
        if not path:
            return
        self.checkpoint = read_checkpoint(Path(path))
        stored = {
            "model": self.checkpoint["hyper_parameters"],
            "data": {
                name: value
                for name, value in self.checkpoint.get("datamodule_hyper_parameters", {}).items()
                if name in self._subconfig.data and name not in PLACE_OPTIONS
            },
        }
        self._forget_what_a_finder_replaced()
        taken = {
            group: {name: value for name, value in values.items() if name not in self._explicit.get(group, {})}
            for group, values in stored.items()
        }
        self.config = self.parser.parse_object({self.config.subcommand: taken}, self.config)

    def _forget_what_a_finder_replaced(self) -> None:
        """A rate that is given as it was when the finder replaced it does not contradict the one that was found."""
        for state in self.checkpoint.get("callbacks", {}).values():
            if isinstance(state, dict) and set(state) == {"attribute", "given", "found"}:
                name = state["attribute"].partition(".")[0]
                if self._explicit.get(f"model.{state['attribute']}") == state["given"]:
                    self._explicit.model.pop(name)

    def _refuse_contradictions(self) -> None:
        """Refuse given options that differ from what the checkpoint's network was trained with.

        Raises:
            ValueError: If there are any.
        """
        data = set(self.datamodule.hparams) - PLACE_OPTIONS if self.subcommand == "fit" else NETWORK_OPTIONS
        reused = {name: getattr(self.model, name) for name in ("pretrained", "pretrained_layers")}
        reused = {name: value for name, value in reused.items() if value is not None and self.subcommand == "fit"}
        groups = (
            ("model", reused, self.checkpoint, set(reused)),
            ("model", self.model.hparams, self.checkpoint["hyper_parameters"], set(self.model.hparams)),
            ("data", self.datamodule.hparams, self.checkpoint.get("datamodule_hyper_parameters", {}), data),
        )
        for group, given, stored, names in groups:
            named = self._explicit.get(group, {})
            for name in sorted(name for name in names & set(stored) if name in named):
                if _plain(given[name]) != _plain(stored[name]):
                    raise ValueError(
                        f"--{group}.{name} contradicts the checkpoint: expected {stored[name]!r}, with which it was "
                        f"trained, or no such option; received {given[name]!r}"
                    )

    # ------------------------------------------------------------------------------------------- instantiation

    def _add_instantiators(self) -> None:
        """Build the classifier from the primitives that its checkpoints store, not from objects made of them."""

        def build(cls: type[MLPClassifier], *args: Any, **kwargs: Any) -> MLPClassifier:
            return cls(**self._subconfig.model.as_dict())

        self.parser.add_instantiator(build, MLPClassifier, subclasses=False)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        super().instantiate_classes()
        if self.checkpoint:
            self._refuse_contradictions()
            self._check_members()
            self.model.pretrained = None  # the checkpoint has its layers

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the callbacks and loggers that every run has, in a folder of its own."""
        config = self._get(self.config_init, "trainer")
        self.predictions = PredictionTable()
        callbacks: list[Callback] = [
            RunReport(),
            ExactResume(),
            EvaluationReport(),
            self.predictions,
            *self.callbacks,
        ]
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            callbacks.append(
                BestAndLast(filename="best", monitor="val_loss", save_last=True, enable_version_counter=False)
            )
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

    # -------------------------------------------------------------------------------------------------- running

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """What the trainer's method is called with."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        match subcommand:
            case "predict":
                arguments["return_predictions"] = False  # they are streamed into a table
            case "validate" | "test":
                arguments["verbose"] = False  # our table says it
        return arguments

    def after_validate(self) -> None:
        """Write the calibrated network beside the other results."""
        if self.model.calibrate and self.trainer.is_global_zero:
            assert self.folder is not None, "the run has a folder"
            path = self.folder / "checkpoints" / "calibrated.ckpt"
            path.parent.mkdir(exist_ok=True)
            temperature = self.model.temperature.value.cpu()
            checkpoint = torch.load(self._subconfig.ckpt_path, map_location="cpu", weights_only=True)
            checkpoint["state_dict"]["temperature.value"] = temperature
            torch.save(checkpoint, path)
            print(f"temperature {temperature.item():.4f}; the calibrated network is in {path}")

    def after_predict(self) -> None:
        """Exit with status 1 if an image was skipped.

        Raises:
            SystemExit: If so.
        """
        if self.predictions.broken:
            raise SystemExit(1)

    @property
    def _root(self) -> Path:
        return Path(self._subconfig.trainer.default_root_dir or RUNS)

    @property
    def _config_name(self) -> str:
        """The names of the configs, or of the run that a checkpoint is from."""
        configs = [Path(str(path)) for path in self._subconfig.config or []]
        if self._subconfig.ckpt_path not in (None, "best", "last"):
            checkpoint = Path(self._subconfig.ckpt_path).absolute()
            if checkpoint.parent.name != "checkpoints" and not configs:
                return checkpoint.stem
            run = checkpoint.parent.parent
            if not configs or run / "config.yaml" in [path.absolute() for path in configs]:
                return run.parent.name
        return "+".join(path.stem for path in configs) or "default"


def _plain(value: Any) -> Any:
    """The value with its tuples as lists, as YAML and JSON know them."""
    return json.loads(json.dumps(value, default=str))


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
