"""The private parts of Lightning 2.6 that this package needs.

There is one function per need. `tests/training/test_lightning_internals.py` looks up each name, so an upgrade that
breaks one fails there with a message that names it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from math import ceil
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch.utils.data import DistributedSampler

T = TypeVar("T")

#: The environment variable in which `seed_everything` leaves its seed for the processes of other ranks.
GLOBAL_SEED = "PL_GLOBAL_SEED"


# ------------------------------------------------------------------------------------------------- data and length


def train_loader(trainer: Trainer) -> Any:
    """The training loader of the data module or the user, before the trainer sets up its own.

    `trainer.train_dataloader` is None until then. Setting it up early is a trap: a resume would restore it too late and
    silently continue with the wrong batches.
    """
    return trainer.fit_loop._data_source.dataloader()


def prepared_train_loader(trainer: Trainer) -> Any:
    """A separate training loader, with the sampler that the trainer's strategy needs."""
    return trainer._data_connector._prepare_dataloader(train_loader(trainer), shuffle=True, mode=RunningStage.TRAINING)


def batches_per_epoch(trainer: Trainer) -> int | None:
    """Number of training batches per epoch on this rank; None if it can't be known.

    `trainer.num_training_batches` is only known once the loader is set up: see `train_loader`.
    """
    loader = train_loader(trainer)
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError):  # a stream
        return None
    connector = trainer._accelerator_connector
    sharded = not connector.use_distributed_sampler or isinstance(getattr(loader, "sampler", None), DistributedSampler)
    if connector.is_distributed and not sharded:
        batches = ceil(batches / trainer.world_size)
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def stop_at(trainer: Trainer, steps: int) -> None:
    """End the fit after so many optimizer steps; a trainer's `max_steps` can't be set."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def stop_before_training(trainer: Trainer) -> None:
    """End the fit before its first step, whatever its minimum number of epochs or steps."""
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None
    trainer.should_stop = True


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Convert and move a loader's batch for the training step, with the hooks of the data module and the module."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


# --------------------------------------------------------------------------------------------------- steps of a fit


def leave_out_backward(trainer: Trainer, skip: bool) -> None:
    """Set whether the trainer skips `backward` because the step computes the gradients itself.

    Manual optimization would work too, but it rejects clipping and counts a hook with several steps as one. Lightning's
    own StochasticWeightAveraging uses this switch.
    """
    trainer.fit_loop._skip_backward = skip


def detects_anomalies(trainer: Trainer) -> bool:
    """Whether autograd's anomaly detection will be on; `torch.is_anomaly_enabled` is only true within the loop."""
    return trainer._detect_anomaly or torch.is_anomaly_enabled()


def batches_until_an_event(trainer: Trainer, most: int) -> int:
    """Number of batches, up to `most`, until Lightning must do something that flags schedule by step."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    in_epoch, in_all = loop.batch_progress.current.ready, loop.batch_progress.total.ready
    counts = [most, fit.max_batches - in_epoch]
    for steps in (trainer.max_steps, trainer.min_steps or 0):
        if steps > trainer.global_step:
            counts.append(steps - trainer.global_step)
    for callback in trainer.checkpoint_callbacks:
        if every := getattr(callback, "_every_n_train_steps", 0):
            counts.append(every - trainer.global_step % every)
    if trainer.log_every_n_steps:  # type: ignore[attr-defined]
        counts.append(trainer.log_every_n_steps - loop._batches_that_stepped % trainer.log_every_n_steps)  # type: ignore[attr-defined]
    for averaging in _averagings(trainer):
        coming = range(trainer.global_step, trainer.global_step + most)
        counts.append(1 + next((i for i, step in enumerate(coming) if averaging.should_update(step_idx=step)), most))
    if (interval := trainer.val_check_batch) not in (None, float("inf")):
        batches = in_all if trainer.check_val_every_n_epoch is None else in_epoch
        counts.append(interval - batches % interval)
    return max(1, int(min(counts)))


def one_by_one(trainer: Trainer, batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches; between two, do what Lightning does between batches, except calling callbacks."""
    loop = trainer.fit_loop.epoch_loop
    optimizer_step = loop.automatic_optimization.optim_progress.optimizer.step
    for index, batch in enumerate(batches):
        if index > 0:
            optimizer_step.increment_completed()
            loop.batch_progress.increment_processed()
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            loop.batch_progress.increment_completed()
            loop._batches_that_stepped += 1
            loop.batch_progress.increment_ready()
            loop.batch_progress.increment_started()
            optimizer_step.increment_ready()
        # Lightning would only know after as many items as there are batches.
        loop.batch_progress.is_last_batch = loop.batch_progress.current.ready >= trainer.fit_loop.max_batches
        yield batch


def finished_epochs(trainer: Trainer) -> int:
    """Number of epochs, since the start of training, whose last batch was trained on.

    An epoch that `max_steps` or a timer cuts short counts too, once its end is processed.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def batch_index(trainer: Trainer) -> int:
    """Index within its epoch of the last batch that was trained on."""
    return trainer.fit_loop.epoch_loop.batch_idx


def epochs_so_far(trainer: Trainer) -> float:
    """Number of epochs trained so far, with a fraction."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return trainer.current_epoch + int(progress.processed) / trainer.num_training_batches


def is_within_a_step(trainer: Trainer) -> bool:
    """Whether a step has started but not finished, so an exception may leave it half done."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.started > progress.processed)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients of the last batches are still being accumulated."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    batches: int = progress.processed
    return batches < trainer.num_training_batches and batches % trainer.accumulate_grad_batches > 0


def validation_is_due(trainer: Trainer) -> bool:
    """Whether flags schedule a validation after the current batch.

    Lightning also validates when training stops, which a run that continues would not do.
    """
    stopping, trainer.should_stop = trainer.should_stop, False
    try:
        fetcher: Any = trainer.fit_loop._data_fetcher
        return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = stopping


def judge_every_validation(checkpoint: ModelCheckpoint) -> None:
    """Make a checkpoint callback judge each validation rather than each epoch's last one.

    Lightning takes `val_check_interval=1`, a validation after each batch, for 1.0, one per epoch.
    """
    checkpoint._save_on_train_epoch_end = False


def judge(stopper: EarlyStopping, metrics: Mapping[str, float], at_epoch_end: bool) -> bool:
    """Whether early stopping would stop a run with these metrics, if it checks at this point.

    Its public hooks read the trainer's metrics and stop the trainer, and thus all networks because of one.

    Raises:
        RuntimeError: If the metric is missing.
    """
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    if bool(stopper._check_on_train_epoch_end) != at_epoch_end or not stopper._validate_condition_metric(values):
        return False
    return stopper._evaluate_stopping_criteria(values[stopper.monitor])[0]


def may_stop(trainer: Trainer) -> bool:
    """Whether `min_epochs` and `min_steps`, if given, have been reached."""
    return trainer.fit_loop._can_stop_early


# ---------------------------------------------------------------------------------------------------- where it stood


def resumes_within_epoch(trainer: Trainer) -> bool:
    """Whether the fit that is starting continues an epoch; `on_train_epoch_start` is not called then."""
    return trainer.fit_loop.restarted_mid_epoch


def start_from_position(trainer: Trainer) -> None:
    """Correct, when training starts, how Lightning interprets a position that `rewrite_position` wrote."""
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = trainer.global_step
    if not resumes_within_epoch(trainer):
        loop.restarting = False  # it is true if max_steps is set, and the first epoch would end before its first batch
    elif validation_is_due(trainer) and not loop._should_accumulate():
        loop._batches_that_stepped -= 1  # Lightning goes back to before the validation and then counts the step


# ------------------------------------------------------------------------------------------------------------ others


def set_initial_hparam(module: LightningModule, path: list[str], value: Any) -> None:
    """Change one of the initial hyperparameters, which the loggers are about to write, if it is among them.

    `save_hyperparameters` would also change the name under which a checkpoint passes them to the class.
    """
    holder: Any = getattr(module, "_hparams_initial", {})
    for key in path[:-1]:
        holder = holder.get(key) if isinstance(holder, Mapping) else None
    if isinstance(holder, MutableMapping) and path[-1] in holder:
        holder[path[-1]] = value


def is_fitting(module: LightningModule) -> bool:
    """Whether a trainer is fitting the module; `module.trainer` raises if there is none."""
    return module._trainer is not None and module.trainer.state.fn == TrainerFn.FITTING


def averaged_modules(trainer: Trainer) -> list[Any]:
    """The copies of the module in which `WeightAveraging` keeps averages; they are made before the module's `setup`."""
    averages = [averaging._average_model for averaging in _averagings(trainer)]
    return [average.module for average in averages if average is not None]


def _averagings(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that average weights."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


def global_seed() -> int | None:
    """The seed of the last `seed_everything`; None if it was never called."""
    seed = os.environ.get(GLOBAL_SEED)
    return None if seed is None else int(seed)


@contextmanager
def same_global_seed() -> Iterator[None]:
    """Restore `global_seed` at the end of the context."""
    seed = os.environ.get(GLOBAL_SEED)
    try:
        yield
    finally:
        os.environ.pop(GLOBAL_SEED, None)
        if seed is not None:
            os.environ[GLOBAL_SEED] = seed
