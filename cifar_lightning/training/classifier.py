"""The deep MLP as a LightningModule: standardization, network, loss, metrics, optimizer and schedule."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.data.batches import Batches, as_floats
from cifar_lightning.data.soft_labels import SoftLabels
from cifar_lightning.nn.mlp import DeepMLP, weight_penalty
from cifar_lightning.nn.standardize import Standardize
from cifar_lightning.nn.temperature import Temperature
from cifar_lightning.optim.class_paths import build_optimizer, build_schedule, optimizer_component, schedule_component
from cifar_lightning.optim.schedule import Schedule
from cifar_lightning.optim.schedules import Constant
from cifar_lightning.primitives import as_primitives
from cifar_lightning.training import checks
from cifar_lightning.training.adopt_data import adopt_data, save_adopted
from cifar_lightning.training.cycle import Cycle
from cifar_lightning.training.divergence import check_loss
from cifar_lightning.training.epoch_metrics import EpochMetrics
from cifar_lightning.training.execution import Executor, StopAtException
from cifar_lightning.training.lightning_internals import averaged_modules, is_fitting
from cifar_lightning.training.network_class import save_class
from cifar_lightning.training.obstacles import find_own_steps, has_own_forward
from cifar_lightning.training.plateau import plateau_configs, step_plateau_schedulers
from cifar_lightning.training.position import position_of

Batch = tuple[Tensor, Tensor]

#: The parameters and the learning rate are given by the classifier, so no option can give a second rate.
OptimizerFactory = Callable[[Iterable[Tensor], float], Optimizer]


class MLPClassifier(LightningModule):
    """A `DeepMLP` as a LightningModule: it standardizes uint8 images and learns with the cross-entropy loss.

    Its hyperparameters are primitives, so a checkpoint loads with `weights_only=True`. The standardization statistics
    are buffers, so a checkpoint is all that is needed to classify an image.

    Two settings are attributes rather than hyperparameters, and may be replaced before `fit`: `executor` (how steps are
    executed) and `cycle` (what a resumed run does if the schedule's length has changed).

    Args:
        lr: Learning rate; the peak rate of a schedule that has one.
        optimizer: MuonAdamW, an optimizer of `torch.optim`, or the import path of a class in an imported module.
        schedule: Learning-rate schedule, by name or as an instance.
        mixup: Mixup parameter alpha: training images are mixed with shares from Beta(alpha, alpha); 0 for none.
        cutmix: CutMix parameter alpha: a box of each training image is replaced by that of another; 0 for none.
        label_smoothing: Share of the training target that is spread evenly over all classes (see `SoftLabels`).
        network: Arguments of `DeepMLP`.

    Raises:
        ValueError: If a value is out of range or a name is unknown.

    Example:
        >>> import torch
        >>> from cifar_lightning import MLPClassifier, compute_statistics
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> classifier = MLPClassifier(hidden_sizes=[16])
        >>> classifier.standardize.set_statistics(compute_statistics(images, "feature"))
        >>> classifier.predict_proba(images).shape
        torch.Size([8, 10])
    """

    def __init__(
        self,
        lr: float = 1e-3,
        optimizer: OptimizerFactory | str = "NAdam",
        schedule: Schedule | str = "Constant",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        **network: Any,
    ) -> None:
        super().__init__()
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr must be a positive number, got {lr}")
        network = as_primitives(network)  # Lightning compares these with the hyperparameters, and arrays can't be
        self.network = DeepMLP(**network)
        # All of the network's options are stored, so a checkpoint still loads if defaults change.
        hparams: dict[str, Any] = {"lr": lr, "mixup": mixup, "cutmix": cutmix, "label_smoothing": label_smoothing}
        hparams |= {"optimizer": optimizer_component(optimizer), "schedule": schedule_component(schedule)}
        self.save_hyperparameters(self.network.options | as_primitives(hparams))
        self.executor, self.cycle = Executor(), Cycle()
        self.classes: list[str] = []
        self.standardize, self.temperature = Standardize(), Temperature()
        self.soft_labels = SoftLabels(num_classes := self.network.output.out_features, mixup, cutmix, label_smoothing)
        self.train_metrics = EpochMetrics(num_classes, "train_")
        self.val_metrics = EpochMetrics(num_classes, "val_")
        self.test_metrics = EpochMetrics(num_classes, "test_")

    # ------------------------------------------------------------------------------------------------- the network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32), uint8 or floating from 0 to 255, to logits (B, num_classes)."""
        logits: Tensor = self.temperature(self.network(self.standardize(images)))
        return logits

    def as_sequential(self) -> nn.Sequential:
        """The same layers as a `Sequential`, so that `mc_predict` runs those before the first dropout only once."""
        return nn.Sequential(self.standardize, self.network, self.temperature)

    @torch.no_grad()
    def predict_proba(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32), 0 to 255, to probabilities (B, num_classes), with dropout off."""
        was_training = self.training
        self.eval()
        try:
            logits: Tensor = self(images.to(self.device))
            return logits.softmax(-1)
        finally:
            self.train(was_training)

    # --------------------------------------------------------------------------------------------- before the steps

    def configure_callbacks(self) -> list[Callback]:
        """Add a callback that cleans up after an exception, unless the trainer has one.

        Raises:
            ValueError: If a callback does not suit this network; checked here, before any of them acts.
        """
        if not is_fitting(self):
            return []
        checks.check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        return StopAtException.once(self.trainer)

    def setup(self, stage: str) -> None:
        """Take over the data module's classes and statistics, unless the network has been trained with its own.

        Raises:
            ValueError: If the data module's classes or scaling contradict them.
        """
        if stage == "fit":
            self.train_metrics.reset()
            self.cycle.start(self.trainer)
        trained = () if stage == "fit" else self.classes
        adopt_data(self, self.trainer.datamodule, trained, averaged_modules(self.trainer))  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the schedule."""
        # (Converted again, since a subclass that saves its own arguments replaces the primitives.)
        component = optimizer_component(self.hparams["optimizer"])
        optimizer = build_optimizer(component, self.network.parameters(), self.hparams["lr"])
        schedule = self._schedule
        if schedule == Constant():
            return optimizer
        config: Any = {
            "scheduler": schedule.build(optimizer, self.cycle.count_steps(self.trainer, schedule)),
            "interval": schedule.interval,
            "monitor": schedule.monitor,
            "reduce_on_plateau": False,  # `on_validation_epoch_end` handles it; Lightning needs a metric every epoch
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    @property
    def _schedule(self) -> Schedule:
        return build_schedule(schedule_component(self.hparams["schedule"]))

    def on_fit_start(self) -> None:
        """Choose how the steps are executed."""
        checks.check_validated(self._schedule, self.trainer.enable_validation)
        linears, size, own = self.network.linears(), self._batch_size or 32, find_own_steps(self, MLPClassifier)
        self.executor.start(self.trainer, self.executor.choose(self.trainer, self, linears, size, own))

    @property
    def _batch_size(self) -> Any:
        return getattr(self.trainer.datamodule, "hparams", {}).get("batch_size")  # type: ignore[attr-defined]

    def batches_at_once(self) -> int:
        """Number of batches that the loader should yield next, at once."""
        return self.executor.batches_at_once(self.trainer)

    def on_train_start(self) -> None:
        """Prepare the steps, now that a checkpoint may have restored the optimizer."""
        l1, l2 = self.network.l1, self.network.l2
        penalty = partial(weight_penalty, l1=l1, l2=l2) if l1 or l2 else None
        obstacle = find_own_steps(self, MLPClassifier)
        layers = self if has_own_forward(self, MLPClassifier) else self.as_sequential()
        self.executor.prepare_step(self.trainer, layers, self._batch_size, penalty, obstacle, self.network.constrain_)
        self.cycle.begin(self.trainer)

    # --------------------------------------------------------------------------------------------------- the steps

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Stop using compiled code if something that it depends on has changed."""
        if not isinstance(batch, Batches):  # several were checked before they were yielded
            self.executor.look_again(self.trainer)

    def training_step(self, batch: Batch | Batches, batch_idx: int) -> Tensor:
        """Return the loss of a batch; if compiled, train on one or several batches and return the last loss."""
        if batch_idx == 0:
            checks.check_batch(batch[0], batch[1], self.network.output.out_features, self.standardize)
            checks.check_batch_norm(self.network, batch.size if isinstance(batch, Batches) else len(batch[1]))
        if self.executor.step is None:
            assert not isinstance(batch, Batches), "a plain step gets one batch"
            images, labels = batch
            inputs, targets = self.soft_labels(images, labels)
            logits = self(inputs)
            loss = F.cross_entropy(logits, targets) + self.network.penalty()
            if self.executor.execution is not None:  # a finder's sweep may diverge
                check_loss(self, loss, inputs)
            self._record(logits.detach(), labels, loss)
            return loss
        batches = batch.split() if isinstance(batch, Batches) else [(as_floats(batch[0]), batch[1])]
        for loss, logits, labels in self.executor.run(self.trainer, batches, self.soft_labels):
            self.network.constrain_()
            self._record(logits, labels, loss)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then enforce the network's constraint; if compiled, `training_step` does both."""
        if self.executor.step is not None:
            (args[3] if len(args) > 3 else kwargs["optimizer_closure"])()
            return
        super().optimizer_step(*args, **kwargs)
        self.network.constrain_()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, unless it follows a validation metric: `on_validation_epoch_end` steps those."""
        if scheduler not in [each.scheduler for each in plateau_configs(self.trainer, self.val_metrics.metrics.keys())]:
            super().lr_scheduler_step(scheduler, metric)
            self.cycle.rates.note(self.trainer)

    def _record(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.train_metrics.update(logits, labels)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            # (On the CPU: Lightning reads these after each batch for a bar, and would wait for a GPU each time.)
            rate = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
            self.log_dict({"train_step_loss": loss.cpu(), "lr": rate}, prog_bar=True, batch_size=len(labels))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, taken while the weights were changing."""
        # An epoch that is cut short keeps its metrics: a resumed run continues it.
        metrics = self.train_metrics if self.trainer.is_last_batch else copy.deepcopy(self.train_metrics)
        # (They are already reduced over ranks; sync_dist only silences Lightning.)
        self.log_dict(metrics.compute_and_reset(), sync_dist=True)

    def on_fit_end(self) -> None:
        """Restore the number of threads and the trainer."""
        self.stop_steps()

    def stop_steps(self) -> None:
        """Execute steps plainly from now on."""
        self.executor.stop(self.trainer)

    # ---------------------------------------------------------------------------------------------- the evaluations

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a batch, and return its logits (B, num_classes)."""
        return self._measure(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and step a schedule that follows one of them."""
        values = self.val_metrics.compute_and_reset()
        self.log_dict(values, prog_bar=True, sync_dist=True)
        step_plateau_schedulers(self.trainer, values)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a batch, and return its logits (B, num_classes)."""
        return self._measure(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self.log_dict(self.test_metrics.compute_and_reset(), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities (B, num_classes) for images (B, 3, 32, 32): the batch, or its first element."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        checks.check_images(images, self.standardize)
        return self.predict_proba(images)

    def _measure(self, batch: Batch, metrics: EpochMetrics) -> Tensor:
        images, labels = batch
        checks.check_batch(images, labels, self.network.output.out_features, self.standardize)
        logits: Tensor = self(images).float()
        metrics.update(logits, labels)
        return logits

    # --------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what it is, and the current epoch's metrics, so that a resumed epoch reports all of it."""
        save_class(self, checkpoint)
        save_adopted(self, checkpoint)
        checkpoint["train_metrics"] = self.train_metrics.save(self.trainer)
        self.cycle.save(checkpoint)
        self.executor.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved."""
        self.classes = checkpoint.get("classes", [])
        if is_fitting(self):
            checks.check_resumable(checkpoint)
            self.cycle.restore(self.trainer, checkpoint, [self._schedule])
            self.executor.restore(checkpoint)
            if position_of(checkpoint).batch:  # metrics of a finished epoch are not needed
                self.train_metrics.restore(self.trainer, checkpoint["train_metrics"])
