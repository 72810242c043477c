"""Checkpoints of each network of a `StackedClassifier`, and a progress bar that names the best one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cifar_lightning.callbacks.progress_bar import RunProgressBar
from cifar_lightning.callbacks.run_folder import run_folder
from cifar_lightning.files import write_whole
from cifar_lightning.training.averages import averages_of
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.lightning_internals import is_within_a_step
from cifar_lightning.training.stacked_classifier import StackedClassifier
from cifar_lightning.training.whole_checkpoints import WholeCheckpoints


class CopyCheckpoints(Checkpoint):
    """Keeps each copy's weights with the lowest validation loss as `best.ckpt`, and its current ones as `last.ckpt`.

    They are in the copy's own folder, and work for evaluations and `MLPClassifier.load_from_checkpoint`. A NaN loss is
    never the best. A resumed run copies its predecessor's files.

    Args:
        more: Additional entries of each checkpoint.
    """

    def __init__(self, more: Mapping[str, Any]) -> None:
        self.more = more

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the checkpoints of a resumed run to its new folder."""
        assert isinstance(pl_module, StackedClassifier), "only a sweep adds this callback"
        resumed = Path(trainer.ckpt_path).parent.parent if trainer.ckpt_path else run_folder(trainer)
        for each in pl_module.copies if resumed != run_folder(trainer) else []:
            for name in ("best", "last"):
                old, new = (_path(folder, each, name) for folder in (resumed, run_folder(trainer)))
                if old.is_file():
                    new.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(new, old.read_bytes())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write new best checkpoints, and after a validation within an epoch the last ones too."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, StackedClassifier), "only a sweep adds this callback"
        for index, each in enumerate(pl_module.copies):
            if each.is_new_best:
                save_copy(pl_module, index, "best", self.more)
                each.is_new_best = False
        if not trainer.is_last_batch:
            self._save_last(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoints."""
        self._save_last(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the last checkpoints if training is interrupted between two steps."""
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException) and not is_within_a_step(trainer)
        if interrupted and trainer.global_step:
            self._save_last(trainer, pl_module)

    def _save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StackedClassifier), "only a sweep adds this callback"
        for index, each in enumerate(pl_module.copies):
            if each.stopped_epoch in (None, trainer.current_epoch + 1):
                save_copy(pl_module, index, "last", self.more)


def save_copy(stack: StackedClassifier, index: int, name: str, more: Mapping[str, Any]) -> None:
    """Write a copy's checkpoint into its folder, atomically. Where weights are averaged, it holds the averages."""
    trainer, each = stack.trainer, stack.copies[index]
    classifier = each.classifier
    *_, saved = classifier, *averages_of(stack, index)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    checkpoint = {
        # (Clones: the tensors may be views of the stack, which would be written in full.)
        "state_dict": {key: value.clone() for key, value in saved.state_dict().items()},
        "hyper_parameters": dict(classifier.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "classes": classifier.classes,
        "datamodule_hyper_parameters": dict(getattr(data, "hparams", {})),
        **more,
    }
    WholeCheckpoints().save_checkpoint(checkpoint, _path(run_folder(trainer), each, name))


def _path(folder: Path, each: Copy, name: str) -> Path:
    return folder / each.name / "checkpoints" / f"{name}.ckpt"


class SweepProgressBar(RunProgressBar):
    """A run's progress bar with the name of the best copy so far."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics as text."""
        metrics = super().get_metrics(trainer, pl_module)
        best = pl_module.copies.best if isinstance(pl_module, StackedClassifier) else None
        return {"best": best.name, **metrics} if best else metrics
