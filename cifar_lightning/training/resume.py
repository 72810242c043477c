"""Exact resuming: a resumed run continues exactly as it would have without the interruption."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cifar_lightning.optim.restored import set_rates
from cifar_lightning.training.interrupt import HeldInterrupt
from cifar_lightning.training.lightning_internals import (
    is_accumulating,
    is_within_a_step,
    resumes_within_epoch,
    start_from_position,
    train_loader,
    validation_is_due,
)
from cifar_lightning.training.messages import say
from cifar_lightning.training.position import rewrite_position
from cifar_lightning.training.random_state import collect_generators, restore_generators
from cifar_lightning.training.ranks import draw_apart, gather_objects

#: Hooks that Lightning also calls because training stops, each with whether it would have been called anyway.
HOOKS: dict[str, Callable[[Trainer], bool]] = {
    "on_train_epoch_end": lambda trainer: trainer.is_last_batch,
    "on_validation_end": validation_is_due,
}


class ExactResume(Callback):
    """Resumes training as if it had never stopped.

    - A checkpoint stores the random generators of Python, NumPy, torch and CUDA. They are restored just before the
      first batch, since creating the loader's iterator and the sanity check draw random numbers. Each rank keeps its
      own generators; if there are more devices than before, the new ones get new generators.
    - Training continues after the last batch that was trained on. An epoch that was cut short, by `max_steps` or a
      time limit, is continued; early stopping and averages of weights take note of it only at its end.
    - Unlike in stock Lightning, a run that stopped early stays stopped, unless the limit that stopped it has changed.
    - On one device, Ctrl-C waits for the end of the step. (A second Ctrl-C does not.)
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None  # of this rank's generators, until the first batch
        self._is_new_rank = True  # whether it has no state of its own in the checkpoint
        self._before: dict[str, Any] | None = None  # the same before the current step
        self._keeps_before = False  # where a checkpoint may be written within a step
        self._gradients: dict[str, Tensor] = {}  # until the first batch, which adds its own
        self._metrics: dict[str, Tensor] | None = None  # until the training starts
        self._interrupt = HeldInterrupt()

    # --------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the generators of all ranks, accumulated gradients, and the metrics that callbacks use."""
        before = self._before if is_within_a_step(trainer) else self._state
        checkpoint["random_generators"] = gather_objects(trainer, before or collect_generators())
        if gradients := self._gradients or _waiting_gradients(trainer, pl_module):
            checkpoint["gradients"] = gradients
        checkpoint["callback_metrics"] = {name: value.clone() for name, value in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state until the first batch, and set the loops to their position.

        Raises:
            ValueError: If the number of devices has changed, and with it the number of images per step.
        """
        states = checkpoint.get("random_generators")
        if states is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if len(states) != trainer.world_size:
            _check_same_steps(trainer, checkpoint, len(states))
        self._is_new_rank = trainer.global_rank >= len(states)
        self._state = states[0 if self._is_new_rank else trainer.global_rank]
        self._metrics = checkpoint.get("callback_metrics", {})
        self._gradients = checkpoint.get("gradients", {})
        rewrite_position(checkpoint)
        for callback in trainer.early_stopping_callbacks:  # the current patience counts, not the saved one
            if state := checkpoint["callbacks"].get(callback.state_key):
                state["patience"] = callback.patience

    # ------------------------------------------------------------------------------------------------- start and end

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not continue a run that had stopped early."""
        if self._metrics is None:
            return
        if any(_has_stopped(callback, self._metrics) for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True
            say("the run had already stopped early: there is nothing left to train")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the checkpoint's position, with its metrics."""
        if self._metrics is None:
            draw_apart(trainer.global_rank)
        else:
            start_from_position(trainer)
            if resumes_within_epoch(trainer):
                _take_back_schedules(trainer)
            trainer.callback_metrics.update(self._metrics)
            self._metrics = None
        self._before, self._keeps_before = None, any(map(_writes_within_steps, trainer.checkpoint_callbacks))
        _skip_epochs_cut_short(trainer)
        if trainer.world_size == 1:  # other ranks would wait for this one in vain
            self._interrupt.hold()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the generators and accumulated gradients, once; act on a held Ctrl-C."""
        self._interrupt.act()
        if self._state is not None:
            restore_generators(self._state)
            if self._is_new_rank:
                draw_apart(trainer.global_rank)
            for name, gradient in self._gradients.items():
                pl_module.get_parameter(name).grad = gradient.to(pl_module.device)
            self._state, self._gradients = None, {}
        if self._keeps_before:
            self._before = collect_generators()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything."""
        _skip_none(trainer)
        self._interrupt.act()
        self._interrupt.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore everything."""
        _skip_none(trainer)
        self._interrupt.release()


def _take_back_schedules(trainer: Trainer) -> None:
    """Let `StochasticWeightAveraging` replace the schedule again, which it does as an epoch starts: too late here."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            (optimizer,) = trainer.optimizers
            rates = [group["lr"] for group in optimizer.param_groups]
            callback.on_train_epoch_start(trainer, trainer.lightning_module)
            set_rates(optimizer, rates)  # a new schedule sets its first rates, and then takes its old state


def _skip_epochs_cut_short(trainer: Trainer) -> None:
    """Keep callbacks from acting at the end of an epoch that is cut short, or after a validation for that reason.

    Lightning ends such an epoch like any other, but here it will be continued. Early stopping would fail because a
    metric is missing, or count an old value again (`strict=False` would only prevent the former), and an average of
    weights would include those at the stop. The callbacks' own hooks are replaced: those of `ExactResume` may come
    after them.
    """
    for callback in _followers(trainer):
        for name, is_due in HOOKS.items():
            vars(callback)[name] = partial(_call_if, is_due, getattr(callback, name))


def _call_if(
    is_due: Callable[[Trainer], bool], hook: Callable[..., None], trainer: Trainer, module: LightningModule
) -> None:
    if is_due(trainer):
        hook(trainer, module)


def _skip_none(trainer: Trainer) -> None:
    """Undo `_skip_epochs_cut_short`."""
    for callback in _followers(trainer):
        for name in HOOKS:
            vars(callback).pop(name, None)


def _followers(trainer: Trainer) -> list[Callback]:
    """The callbacks whose state depends on which epochs have ended."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, EarlyStopping | WeightAveraging)]


def _check_same_steps(trainer: Trainer, checkpoint: dict[str, Any], devices: int) -> None:
    """Check that steps use the same images on another number of devices; a loader that is not ours can't tell.

    Raises:
        ValueError: If they do not.
    """
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    before = {loader.get("step_size") for loader in loaders}
    now = getattr(getattr(train_loader(trainer), "sampler", None), "step_size", None)
    if now is None or before != {now}:
        sizes = f"{now} images" if now else "an unknown number of images"
        raise ValueError(
            f"the number of devices has changed: expected {devices}, as when the checkpoint was written, or a "
            f"--data.batch_size that gives steps of {', '.join(map(str, before)) or 'as many'} images again; got "
            f"{trainer.world_size} with steps of {sizes}"
        )


def _writes_within_steps(callback: Checkpoint) -> bool:
    """Whether a callback writes a checkpoint on an exception."""
    return isinstance(callback, OnExceptionCheckpoint) or bool(getattr(callback, "save_on_exception", False))


def _has_stopped(callback: EarlyStopping, metrics: dict[str, Tensor]) -> bool:
    """Whether early stopping, with its current limits, had stopped the run that left these metrics."""
    if 0 < callback.wait_count >= callback.patience:
        return True
    if callback.monitor not in metrics:
        return False
    value = metrics[callback.monitor]
    stopping, diverged = callback.stopping_threshold, callback.divergence_threshold
    return bool(
        (callback.check_finite and not torch.isfinite(value))
        or (stopping is not None and callback.monitor_op(value, stopping))
        or (diverged is not None and callback.monitor_op(-value, -diverged))
    )


def _waiting_gradients(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """The accumulated gradients, by parameter, that the next batch will add to; {} for none."""
    if not is_accumulating(trainer):
        return {}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {
        name: trainer.strategy.reduce(gradient.clone(), reduce_op="mean")  # ranks have not averaged them yet
        for name, gradient in gradients.items()
        if gradient is not None
    }
