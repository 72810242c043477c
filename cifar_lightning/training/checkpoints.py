"""Checkpoints: writing them whole, reading them without running their code, and which ones a training keeps."""

import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from cifar_lightning.files import replacing
from cifar_lightning.training.lightning_internals import is_within_a_step

#: What a checkpoint is of: one `MLPClassifier`, a sweep of several, or any LightningModule.
Kind = Literal["network", "sweep", "module"]
KINDS = {"network": "one of MLPClassifier", "sweep": "that of a sweep", "module": "one of some LightningModule"}


def read_checkpoint(path: Path, kind: Kind = "network") -> dict[str, Any]:
    """Read a checkpoint, without running code from it.

    Args:
        path: The file.
        kind: What it is to be of. A module need not have hyperparameters.

    Raises:
        ValueError: If the file is none, is of another kind, is damaged, or does not exist.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint: expected a file, received {str(path)!r}")
    try:
        if damage := _find_damage(path):
            raise ValueError(damage)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        received = _find_mismatch(checkpoint, kind)
    except Exception as error:  # a file from anywhere can make the unpickler raise anything
        received = _in_short(error)
    if received:
        raise ValueError(f"wrong checkpoint {path}: expected {KINDS[kind]}, received {received}")
    return dict(checkpoint)


def _find_mismatch(checkpoint: Any, kind: Kind) -> str:
    """What a file's content is that is not of a kind; "" if it is."""
    if not isinstance(checkpoint, Mapping):
        return f"one with a {type(checkpoint).__name__}"
    needed = ["state_dict", *["hyper_parameters"] * (kind != "module")]
    if not all(isinstance(checkpoint.get(name), Mapping) for name in needed):
        return f"one with {', '.join(map(repr, checkpoint))}"
    if kind != "module" and ("copies" in checkpoint) != (kind == "sweep"):
        return "that of one network" if kind == "sweep" else "that of a sweep, whose networks have folders beside it"
    return ""


def _find_damage(path: Path) -> str:
    """Which part of a file is not as `torch.save` wrote it, by the archive's checksums; "" for none.

    torch itself does not compare them: a flipped bit of a weight would go unseen.
    """
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    return f"a damaged file: the checksum of {damaged} is wrong" if damaged else ""


def _in_short(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to let it run its code."""
    text = str(error)
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"a file that would run {code[1]}"
    return (text or type(error).__name__).splitlines()[0]


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint in the folder that it is for, and puts it in the place of the old one when it is whole.

    Lightning's own writes in TMPDIR. Where that is another file system, a training that dies while it copies the file
    from there leaves half of it in the place of the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `TorchCheckpointIO`, which writes what is not for a folder of this machine."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer hides the system's reason for an error, such as a full disk
        torch.save(checkpoint, content)
        with replacing(Path(path)) as beside:
            beside.write_bytes(content.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the lowest validation loss as `best.ckpt`, and takes them along into a resumed run's folder.

    Lightning's own forgets the best score when the folder changes, and calls the first epoch after it the best.
    """

    def __init__(self) -> None:
        super().__init__(filename="best", monitor="val_loss", enable_version_counter=False)
        self._is_first_rank = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        super().setup(trainer, pl_module, stage)
        self._is_first_rank = trainer.is_global_zero

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the best epoch, unless the module logs no validation loss."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this is the best epoch; one that is cut short before the first validation has no score."""
        is_scored = self.monitor in trainer.callback_metrics
        if is_scored or (trainer.is_last_batch and not trainer.enable_validation):
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.is_last_batch:
            rank_zero_warn(f"no best.ckpt is written: {type(pl_module).__name__} validates, but logs no {self.monitor}")

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this is the best so far, which a loss that is no number never is."""
        return current is not None and bool(current.isfinite()) and super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint, if it is still there, and go on from its score.

        If it is not there but here, the run goes on in its own folder, which was moved.
        """
        best = Path(state_dict["best_model_path"])
        here = Path(self.dirpath or best.parent) / best.name
        # (They are the same in a test after a fit.)
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
    """Keeps the present weights as `last.ckpt`.

    It is written at the end of each epoch, after each validation within one, and when the training is interrupted, by
    Ctrl-C or SIGTERM. `save_last` writes only where the best has changed, so a resume would lose all epochs since; and
    of epochs with several validations, Lightning would write none at its end.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self._is_training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to keep."""
        super().on_train_start(trainer, pl_module)
        self._is_training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch was written."""
        self._is_training = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a validation within an epoch; one at its end is followed by the epoch's own."""
        if self._is_training and not trainer.is_last_batch:
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write when the training is interrupted between two steps, on one device: others may be at another step."""
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException) and not is_within_a_step(trainer)
        if self._is_training and interrupted and trainer.world_size == 1:
            self._write(trainer)
        self._is_training = False

    def _write(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.format_checkpoint_name({}))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: which file was written last does not matter in a new folder."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
