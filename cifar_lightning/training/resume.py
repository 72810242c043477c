"""Bit-exact resuming: the random generators' states go with the run."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console

from cifar_lightning.training.random_state import collect_generators, restore_generators


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
