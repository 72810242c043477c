"""Several `MLPClassifier`s trained as one LightningModule, each with its own settings and metrics."""

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich import get_console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_lightning.data.batches import Batches
from cifar_lightning.nn.standardize import Standardize
from cifar_lightning.optim.joined import JoinedOptimizer, join
from cifar_lightning.training import checks
from cifar_lightning.training.adopt_data import adopt_data
from cifar_lightning.training.averages import averages_of, take_averages
from cifar_lightning.training.classifier import Batch, MLPClassifier
from cifar_lightning.training.copies import Copies, Copy
from cifar_lightning.training.execution import StopAtException
from cifar_lightning.training.lightning_internals import finished_epochs, is_fitting, may_stop, validation_is_due
from cifar_lightning.training.position import position_of
from cifar_lightning.training.stacked_steps import StackedSteps


class StackedClassifier(LightningModule):
    """Networks of one shape that are trained together, each as if it were trained alone.

    Each has its own learning rate, optimizer and schedule, its own batch order if seeds differ, and its own metrics,
    logged as `val_loss/NAME` for the copy NAME. Early stopping applies to each separately; a copy that has stopped
    keeps its weights, and training ends with the last one.

    Args:
        base: Provides execution, cycle and hyperparameters of the whole; it is not trained itself.
        copies: The networks, which must have the same shape; see `Stack`.
        stoppers: Early stopping callbacks; each network gets its own copies.

    Raises:
        ValueError: If there are no networks.
    """

    def __init__(
        self,
        base: MLPClassifier,
        copies: Sequence[Copy],
        stoppers: Sequence[EarlyStopping] = (),
    ) -> None:
        super().__init__()
        if not copies:
            raise ValueError("nothing to train: expected at least one network, got none")
        self.save_hyperparameters(dict(base.hparams))
        self.cycle = base.cycle
        self.copies = Copies(copies)
        self.networks = nn.ModuleList(self.classifiers)  # so that checkpoints hold their states
        for each in self.copies:
            each.stoppers = copy.deepcopy(list(stoppers))
        orders = [self.order_seeds.index(each.seed) for each in self.copies]
        self.steps = StackedSteps(base.executor, self.classifiers, orders)
        self.executor = base.executor
        self._schedulers: dict[int, LRScheduler] = {}
        self._epoch_start = 0.0

    # --------------------------------------------------------------------------------------------------- the copies

    @property
    def classifiers(self) -> list[MLPClassifier]:
        """The copies' classifiers."""
        return [each.classifier for each in self.copies]

    @property
    def order_seeds(self) -> list[int]:
        """The seeds of the orders in which the data module should yield batches."""
        return self.copies.seeds

    @property
    def standardize(self) -> Standardize:
        """The standardization of the first copy; all have the same statistics."""
        return self.classifiers[0].standardize

    @property
    def _joined(self) -> JoinedOptimizer:
        (joined,) = self.trainer.optimizers
        assert isinstance(joined, JoinedOptimizer), "`configure_optimizers` makes one"
        return joined

    # --------------------------------------------------------------------------------------------- before the steps

    def configure_callbacks(self) -> list[Callback]:
        """Add the same callbacks as an `MLPClassifier`."""
        if not is_fitting(self):
            return []
        checks.check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        return StopAtException.once(self.trainer)

    def setup(self, stage: str) -> None:
        """Take over the data module's classes and statistics, or raise an error if there are several devices."""
        if self.trainer.world_size > 1:
            raise ValueError(
                "networks that are trained together must be on one device: expected --trainer.devices 1, got "
                f"{self.trainer.world_size}"
            )
        self.steps.stop(self.trainer)  # clean up after an interrupted fit
        self.cycle.start(self.trainer)
        for index, each in enumerate(self.copies):
            each.classifier.train_metrics.reset()
            adopt_data(each.classifier, self.trainer.datamodule, averages=averages_of(self, index))  # type: ignore[attr-defined]
            for stopper in each.stoppers:
                stopper.setup(self.trainer, self, stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build each copy's optimizer and schedule, and join them."""
        schedules = [each.schedule for each in self.copies]
        lengths = [self.cycle.count_steps(self.trainer, schedule) for schedule in schedules]
        joined, schedulers = join([each.make_optimizer() for each in self.copies], schedules, lengths)
        self._schedulers = {i: scheduler for group in schedulers.values() for i, scheduler in group.schedulers.items()}
        configs: list[Any] = [
            {"scheduler": scheduler, "interval": interval, "reduce_on_plateau": False}
            for interval, scheduler in schedulers.items()
        ]
        return [joined], configs

    def on_fit_start(self) -> None:
        """Choose how the steps are executed."""
        for each in self.copies:
            checks.check_validated(each.schedule, self.trainer.enable_validation)
        if not self.copies.active:
            self.trainer.should_stop = True
            get_console().print("all networks had already stopped early: there is nothing left to train")
        batch_size = getattr(self.trainer.datamodule, "hparams", {}).get("batch_size")  # type: ignore[attr-defined]
        self.steps.choose(self.trainer, self, batch_size or 32)

    def batches_at_once(self) -> int:
        """Number of batches that the loader should yield next, at once."""
        return self.steps.batches_at_once(self.trainer)

    def on_train_start(self) -> None:
        """Prepare the steps, now that a checkpoint may have restored the optimizers."""
        finished = finished_epochs(self.trainer)
        self.steps.prepare(self.trainer, self, self._joined.optimizers)
        for index, each in enumerate(self.copies):
            if each.has_stopped:
                self._hold(index)
            else:
                each.rows = [row for row in each.rows if row["epoch"] <= finished]
        self.cycle.begin(self.trainer)

    def _hold(self, index: int) -> None:
        """Freeze a copy that has stopped."""
        self._joined.active[index] = False
        self.steps.release(index)
        if not self.trainer.is_last_batch:  # or else its averages may be updated once more, as the epoch ends
            take_averages(self, [index])

    def on_train_epoch_start(self) -> None:
        """Record the time."""
        self._epoch_start = time.perf_counter()

    # ---------------------------------------------------------------------------------------------------- the steps

    def training_step(self, batch: Batch | Batches, batch_idx: int) -> Tensor:
        """Return the sum of the copies' losses; if compiled, train on one or several batches."""
        network = self.classifiers[0].network
        if batch_idx == 0:
            checks.check_batch(batch[0], batch[1], network.output.out_features, self.standardize)
            checks.check_batch_norm(network, batch.size if isinstance(batch, Batches) else batch[1].shape[-1])
        batches: Iterable[Batch] = batch.split() if isinstance(batch, Batches) else [batch]
        if not self.steps.are_whole:
            ((images, labels),) = batches
            losses, logits = self.steps.compute(images, labels, self.copies.active)
            self._record(dict(zip(self.copies.active, losses.detach(), strict=True)), logits.detach(), labels)
            return losses.sum()  # each network's gradient is that of its own loss: no loss depends on another network
        for losses, logits, labels in self.steps.run(self.trainer, batches):
            self._constrain()
            active = self.copies.active
            self._record({index: losses[index] for index in active}, logits[active], labels)
        return losses[active].sum()

    def _constrain(self) -> None:
        for index in self.copies.active:
            self.classifiers[index].network.constrain_()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then enforce the networks' constraints; if compiled, `training_step` does both."""
        if self.steps.are_whole:
            (args[3] if len(args) > 3 else kwargs["optimizer_closure"])()
            return
        super().optimizer_step(*args, **kwargs)
        self._constrain()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of each copy separately."""
        for index in self.copies.active:
            self.clip_gradients(self._joined.optimizers[index], gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedulers of the active copies; `on_validation_epoch_end` steps those that follow a metric."""
        scheduler.step()

    def _record(self, losses: Mapping[int, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Record a step of the active copies, by index, for the metrics and the log."""
        for position, index in enumerate(losses):
            self.classifiers[index].train_metrics.update(logits[position], self.steps.labels_of(labels, index))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            read = torch.stack(list(losses.values())).detach().cpu()  # all at once, since it waits for a GPU
            for index, loss in zip(losses, read, strict=True):
                name, rate = self.copies[index].name, torch.tensor(self._joined.rate(index))
                self.log_dict({f"train_step_loss/{name}": loss, f"lr/{name}": rate}, batch_size=labels.shape[-1])

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, and apply early stopping."""
        is_whole = self.trainer.is_last_batch
        for index in self.copies.active:
            self._end_epoch(index, is_whole)
        if is_whole:
            self._stop_copies(at_epoch_end=True)
        take_averages(self, self.copies.stopped)

    def _end_epoch(self, index: int, is_whole: bool) -> None:
        seconds = time.perf_counter() - self._epoch_start
        known = {"epoch": self.trainer.current_epoch + 1.0, "seconds": seconds, "lr": self._joined.rate(index)}
        self._log(self.copies[index], self.copies[index].end_epoch(is_whole, known))

    def on_fit_end(self) -> None:
        """Restore the number of threads and the trainer."""
        self.stop_steps()

    def stop_steps(self) -> None:
        """Execute steps plainly from now on."""
        self.steps.stop(self.trainer)

    # --------------------------------------------------------------------------------------------------- validations

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        images, labels = batch
        checks.check_batch(images, labels, self.classifiers[0].network.output.out_features, self.standardize)
        inputs = self.standardize(images)
        for each in (self.classifiers[index] for index in self.copies.active):
            each.val_metrics.update(each.temperature(each.network(inputs)).float(), labels)

    def on_validation_epoch_end(self) -> None:
        """Log each copy's metrics, step schedules that follow a metric, and apply early stopping."""
        epoch = None if self.trainer.sanity_checking else self.trainer.current_epoch + 1
        is_due = epoch is not None and validation_is_due(self.trainer)
        for index in self.copies.active:
            each = self.copies[index]
            values = each.end_validation(epoch, is_due)
            self._log(each, values)
            if is_due and (monitor := each.schedule.monitor) is not None:
                self._schedulers[index].step(values[monitor])  # type: ignore[arg-type]  # a ReduceLROnPlateau
        if best := self.copies.best:
            self.log("best_val_accuracy", best.best["val_accuracy"], prog_bar=True)
        if is_due:
            self._stop_copies(at_epoch_end=False)

    def _log(self, each: Copy, values: Mapping[str, float]) -> None:
        self.log_dict({f"{metric}/{each.name}": value for metric, value in values.items()})

    def _stop_copies(self, at_epoch_end: bool) -> None:
        """Stop the copies that early stopping selects now, and training itself with the last one."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for index in self.copies.stop(self.trainer.current_epoch + 1, at_epoch_end, may_stop(self.trainer)):
            self._hold(index)
            if not at_epoch_end:
                self._end_epoch(index, is_whole=True)
        if not self.copies.active:
            self.trainer.should_stop = True

    # --------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of each copy."""
        checkpoint["classes"] = self.classifiers[0].classes
        checkpoint["seconds"] = time.perf_counter() - self._epoch_start
        checkpoint["copies"] = [each.save(self.trainer) for each in self.copies]
        self.cycle.save(checkpoint)
        self.executor.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved."""
        checks.check_resumable(checkpoint)
        self.cycle.restore(self.trainer, checkpoint, [each.schedule for each in self.copies])
        self.executor.restore(checkpoint)
        is_within = position_of(checkpoint).batch > 0
        self._epoch_start = time.perf_counter() - checkpoint["seconds"]
        for each, saved in zip(self.copies, checkpoint["copies"], strict=True):
            each.restore(self.trainer, saved, is_within)
