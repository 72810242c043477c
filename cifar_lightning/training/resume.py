"""Bit-exact resuming: the random generators' states and the best weights so far go with the run."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console


class ExactResume(Callback):
    """Save the random generators of Python, NumPy, torch and CUDA, and restore them before the first batch.

    Not earlier: making the loader's iterator and the sanity check draw random numbers. Each rank keeps its own.
    A training that had stopped early does not go on, as Lightning's would.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the states of all ranks."""
        states = [collect_generators()]
        if trainer.world_size > 1:
            states *= trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_generators"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state until the first batch.

        Raises:
            ValueError: If the number of devices has changed, with which the batches change too.
        """
        states = checkpoint.get("random_generators")
        if states is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if len(states) != trainer.world_size:
            raise ValueError(
                f"another number of devices: expected {len(states)}, as when the checkpoint was written; received "
                f"{trainer.world_size}. A resume could not go on with the same batches"
            )
        self._state = states[trainer.global_rank]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a training alone that had stopped early."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and 0 < callback.patience <= callback.wait_count:
                trainer.should_stop = True
                get_console().print("the training had stopped early: there is nothing left to train")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the state, once."""
        if self._state is not None:
            restore_generators(self._state)
            self._state = None


class BestAndLast(ModelCheckpoint):
    """A `ModelCheckpoint` whose `last` is the last one, and which takes the best along into a resumed run's folder.

    Lightning 2.6's own writes `last` only where the best has changed, so a resume would lose all epochs since. And it
    forgets the best score when the folder changes, and calls the first epoch after it the best.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if this is the moment to."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_anyway(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if this is the moment to."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last_anyway(trainer)

    def _save_last_anyway(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as where it has been saved just now
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint, if it is still there, and go on from its score."""
        best = Path(state_dict["best_model_path"])
        here = Path(self.dirpath or best.parent) / best.name
        if best.is_file() and best.absolute() != here.absolute():  # the same in a test after a fit
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                here.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(best, here)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(here),
                "kth_best_model_path": str(here),
                "best_k_models": {str(here): state_dict["best_model_score"]},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


def collect_generators() -> dict[str, Any]:
    """The states as primitives and tensors, which load with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this rank's device
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Set the generators to what `collect_generators` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for generator in state["cuda"]:  # none if the checkpoint was written without a GPU
            torch.cuda.set_rng_state(generator.cpu())
