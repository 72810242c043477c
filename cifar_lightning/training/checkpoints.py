"""The checkpoints that a run keeps: the best and the last."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from cifar_lightning.files import is_no_room, replacing
from cifar_lightning.training.lightning_internals import is_within_a_step, judge_every_validation
from cifar_lightning.training.messages import say


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the lowest validation loss as `best.ckpt`, and copies them to a resumed run's folder.

    Lightning's own callback forgets the best score when the folder changes, and takes the next epoch for the best.
    """

    def __init__(self) -> None:
        super().__init__(filename="best", monitor="val_loss", enable_version_counter=False)
        self._is_first_rank = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.val_check_interval, int) and trainer.enable_validation:
            judge_every_validation(self)
        self._is_first_rank = trainer.is_global_zero

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the best epoch, unless the module logs no validation loss."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the best epoch; an epoch cut short before the first validation has no score."""
        is_scored = self.monitor in trainer.callback_metrics
        if is_scored or (trainer.is_last_batch and not trainer.enable_validation):
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.is_last_batch:
            rank_zero_warn(f"best.ckpt is not written: {type(pl_module).__name__} validates but logs no {self.monitor}")

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this is the best so far; a NaN or infinite loss never is."""
        return current is not None and bool(current.isfinite()) and super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint, if it still exists, and continue from its score.

        If it exists only in this folder, the run continues in its own folder, which was moved.
        """
        best = Path(state_dict["best_model_path"])
        here = Path(self.dirpath or best.parent) / best.name
        # (They are the same file in a test that follows a fit.)
        if best.absolute() != here.absolute() and (best.is_file() or here.is_file()):
            if self._is_first_rank and best.is_file():
                here.parent.mkdir(parents=True, exist_ok=True)
                with replacing(here) as beside:
                    shutil.copyfile(best, beside)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(here),
                "kth_best_model_path": str(here),
                "best_k_models": {str(here): state_dict["best_model_score"]},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the current weights as `last.ckpt`.

    It is written at the end of each epoch, after each validation within one, and on Ctrl-C or SIGTERM. Lightning's
    `save_last` only writes when the best changes, so resuming would lose all epochs since; and with several validations
    per epoch, Lightning would write nothing at an epoch's end.

    Args:
        command: The command that resumes from it.
    """

    def __init__(self, command: str = "fit") -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self._command = command
        self._is_training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is something to save."""
        super().on_train_start(trainer, pl_module)
        self._is_training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop saving: the last epoch has been written."""
        self._is_training = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a validation within an epoch; at its end, the epoch's own checkpoint follows."""
        if self._is_training and not trainer.is_last_batch:
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write if training is interrupted between two steps on one device; other devices may be at another step.

        Then print the command that resumes, also after a disk was full.
        """
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if self._is_training and interrupted and trainer.world_size == 1 and not is_within_a_step(trainer):
            self._write(trainer)
        path = Path(self.format_checkpoint_name({}))
        if (interrupted or is_no_room(exception)) and trainer.is_global_zero and path.is_file():
            say(f"to resume: cifar-lightning {self._command} --ckpt_path {path}", wrap=False)
        self._is_training = False

    def _write(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.format_checkpoint_name({}))

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save: which file was written last does not matter in a new folder."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
