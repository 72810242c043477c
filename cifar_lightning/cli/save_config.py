"""Saves a run's config, and a record of everything else needed to repeat it, in the run's folder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from cifar_lightning.callbacks.run_folder import run_folder
from cifar_lightning.cli.find_run import MARK, SAVED_CONFIG
from cifar_lightning.cli.run_record import RECORD, make_record
from cifar_lightning.files import write_whole
from cifar_lightning.training.network_class import CHECKPOINT_KEY


class SaveRunConfig(SaveConfigCallback):
    """Saves both with the run's other files; Lightning's own callback uses the first logger's folder, if it has one.

    Args:
        parser: The parser of the options.
        config: The options.
        fingerprints: Fingerprints of the configs that the run was started with.
        class_paths: Import paths of the model and data classes, which checkpoints store too.
        arguments: The arguments of `cifar-lightning`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        fingerprints: Sequence[str],
        class_paths: Mapping[str, str],
        arguments: Sequence[str],
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.class_paths, self.arguments = dict(class_paths), list(arguments)
        self.text = f"{MARK} {' '.join(fingerprints)}\n{parser.dump(config, skip_none=False)}"
        del self.parser, self.config  # they can't be sent to the processes of ddp_spawn

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both; Lightning calls this only on the first rank."""
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / SAVED_CONFIG, self.text.encode())
        write_whole(folder / RECORD, json.dumps(make_record(trainer, self.arguments), indent=1).encode())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the class paths in a checkpoint, so that it is enough to rebuild them."""
        checkpoint[CHECKPOINT_KEY] = self.class_paths
