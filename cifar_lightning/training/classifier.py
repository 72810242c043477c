"""The deep MLP as a LightningModule: standardization, network, loss, metrics, optimizer and schedule."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection

from cifar_lightning.analysis.mc_dropout import MCPrediction, dropout_modules, mc_predict
from cifar_lightning.analysis.metrics import classification_metrics
from cifar_lightning.callbacks.evaluation import Predictions, gather
from cifar_lightning.cli.run_folder import read_checkpoint
from cifar_lightning.data.batches import Batches
from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.nn.standardize import Standardize, Statistics
from cifar_lightning.nn.temperature import Temperature
from cifar_lightning.nn.transfer import copy_hidden_layers
from cifar_lightning.optim.class_paths import build_optimizer, optimizer_component
from cifar_lightning.optim.schedules import Constant, Cosine, OneCycle, Schedule, build_schedule, schedule_component
from cifar_lightning.training.execution import STEP_METHODS, Compile, Execution, Executor, one_by_one
from cifar_lightning.training.lightning_internals import count_optimizer_steps

Batch = tuple[Tensor, Tensor]

#: The parameters and the learning rate are given by the classifier, so no option can give a second rate.
OptimizerFactory = Callable[[Iterable[Tensor], float], Optimizer]

NETWORK_DEFAULTS = {name: p.default for name, p in inspect.signature(DeepMLP).parameters.items()}

#: Training metrics are updated this many batches at a time: at batch 32 an update costs as much as the network.
METRICS_EVERY = 64


class MLPClassifier(LightningModule):
    """A `DeepMLP` that takes uint8 images, standardizes them, and learns by cross-entropy.

    Its hyperparameters are primitives, so a checkpoint loads with `weights_only=True`; the statistics of the
    standardization are buffers, so a checkpoint alone classifies an image.

    Args:
        lr: Learning rate; the peak of a schedule that has one.
        optimizer: An optimizer of `torch.optim`, by name, or of an imported module, by path.
        schedule: How the learning rate moves, by name or as an instance.
        mc_samples: In an evaluation or a prediction, number of Monte-Carlo dropout passes; 0 for none.
        ensemble: In an evaluation, checkpoints whose probabilities are averaged with this network's.
        calibrate: In `validate`, whether to fit a temperature and write it into a new checkpoint.
        resume_cycle: What to do when a training is resumed with another length than its schedule was made for: refuse,
            finish the old cycle and stop, or begin a new one from the weights so far for the steps that are left.
        compile: Whether to train by compiled code: "auto" for wherever it is safe and pays, which is in trainings of
            thousands of steps on one CPU; "always", or else an error; or "never".
        steps_per_execution: Compiled, the largest number of optimizer steps in one of Lightning's hooks. Trainer flags
            count optimizer steps all the same.
        pretrained: In `fit`, a checkpoint from whose first hidden layers and standardization this network starts. (No
            hyperparameter: a checkpoint of this network has the layers itself.)
        pretrained_layers: Number of these layers; by default all hidden ones.
        network: What `DeepMLP` takes.

    Raises:
        ValueError: For a value that is out of range or a name that is unknown.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        optimizer: OptimizerFactory | str = "NAdam",
        schedule: Schedule | str = "Constant",
        mc_samples: int = 0,
        ensemble: list[str] | None = None,
        calibrate: bool = False,
        resume_cycle: Literal["refuse", "finish", "new"] = "refuse",
        compile: Compile = "auto",
        steps_per_execution: int = 50,
        pretrained: str | None = None,
        pretrained_layers: int | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr out of range: expected a positive number, received {lr}")
        self.network = DeepMLP(**network)
        # All of the network's choices are stored, so that a checkpoint outlives a change of defaults.
        hparams = NETWORK_DEFAULTS | network | {"hidden_sizes": self.network.hidden_sizes, "lr": lr}
        hparams |= {"optimizer": optimizer_component(optimizer), "schedule": schedule_component(schedule)}
        self.save_hyperparameters(hparams)
        # What is asked of an evaluation is no hyperparameter of the network.
        if mc_samples < 0:
            raise ValueError(f"mc_samples out of range: expected 0 or more, received {mc_samples}")
        self.mc_samples, self.ensemble, self.calibrate = mc_samples, ensemble or [], calibrate
        self.resume_cycle = resume_cycle
        self.executor = Executor(compile, steps_per_execution)  # nor is how it is computed
        if pretrained is None and pretrained_layers is not None:
            raise ValueError("pretrained_layers alone: expected pretrained too, received None")
        self.pretrained, self.pretrained_layers = pretrained, pretrained_layers  # nor where it starts from
        self._reused = 0  # hidden layers
        self._total_steps: int | None = None
        self._first_step = 0  # of the cycle: not 0 only if a resumed training began a new one
        self._new_cycle = False
        self.members: list[MLPClassifier] = []
        self.classes: list[str] = []
        self.standardize = Standardize()
        self.temperature = Temperature()
        num_classes = self.network.output.out_features
        self.train_metrics = classification_metrics(num_classes, "train_")
        self.val_metrics = self.train_metrics.clone(prefix="val_")
        self.test_metrics = self.train_metrics.clone(prefix="test_")
        self._pending: list[Batch] = []  # logits and labels that train_metrics has not seen yet

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32), uint8 or floating from 0 to 255, to logits (B, num_classes)."""
        logits: Tensor = self.temperature(self.network(self.standardize(images)))
        return logits

    def as_sequential(self) -> nn.Sequential:
        """The same as layers in a row, so that `mc_predict` computes what dropout does not change only once."""
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

    def setup(self, stage: str) -> None:
        """Take over the data module's statistics, unless the network was trained with its own already.

        Raises:
            ValueError: If the data module's scaling contradicts them.
        """
        if stage == "fit":
            self.executor.stop(self.trainer)  # what an interrupted fit leaves behind
            if self.pretrained is not None and not self._reused:
                self._reuse_layers(self.pretrained)
        else:
            self._prepare_evaluation()
        images = getattr(self.trainer.datamodule, "images", None)  # type: ignore[attr-defined]
        if images is not None:
            self._take_classes(list(images.classes), stage)
        statistics: Statistics | None = getattr(self.trainer.datamodule, "statistics", None)  # type: ignore[attr-defined]
        if statistics is None:
            return
        self.standardize.set_statistics(statistics)
        if self.network.activation == "selu" and statistics.scaling in ("raw", "unit"):
            gap = self.network.self_normalization_gaps(standardized_input=False)[-1]
            warnings.warn(f"this SELU network does not normalize itself: {gap}", stacklevel=1)

    def _prepare_evaluation(self) -> None:
        if self.mc_samples and not dropout_modules(self.network):
            raise ValueError(
                "Monte-Carlo dropout has nothing to sample: expected a network with a dropout of p > 0 for "
                f"--model.mc_samples {self.mc_samples}, received dropout {self.hparams['dropout']!r}"
            )
        self.members = [
            MLPClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
            for path in self.ensemble
        ]

    def _take_classes(self, classes: list[str], stage: str) -> None:
        num_classes = self.network.output.out_features
        if len(classes) != num_classes:
            raise ValueError(
                f"wrong num_classes: expected {len(classes)}, the number of the data's classes ({', '.join(classes)}); "
                f"received {num_classes}"
            )
        if stage != "fit" and self.classes not in ([], classes):
            raise ValueError(f"other classes: expected {self.classes}, as in the training; received {classes}")
        self.classes = classes

    def _reuse_layers(self, path: str) -> None:
        read_checkpoint(Path(path))  # which says so if it is none
        source = MLPClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        self._reused = copy_hidden_layers(source.network, self.network, self.pretrained_layers)
        self.standardize.load_state_dict(source.standardize.state_dict())  # of the inputs that the layers expect

    @property
    def reused_layers(self) -> list[nn.Module]:
        """The normalization of the input and the hidden layers that came from a pretrained network; [] for none."""
        return [self.network.input, *self.network.hidden[: self._reused]] if self._reused else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the schedule."""
        optimizer = build_optimizer(self.hparams["optimizer"], self.network.parameters(), self.hparams["lr"])
        schedule = build_schedule(self.hparams["schedule"])
        if schedule == Constant():
            return optimizer
        self._total_steps = count_optimizer_steps(self.trainer)
        steps = None if self._total_steps is None else self._total_steps - self._first_step
        config: Any = {
            "scheduler": schedule.build(optimizer, steps),
            "interval": schedule.interval,
            "monitor": schedule.monitor,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_fit_start(self) -> None:
        """Choose how the steps are executed."""
        self.executor.start(self.trainer, self.choose_execution())

    def choose_execution(self, networks: int = 1) -> Execution:
        """How the steps of the present training, of so many networks at once, had best be executed."""
        own = [name for name in STEP_METHODS if getattr(type(self), name) is not getattr(MLPClassifier, name)]
        obstacle = f"{type(self).__name__}.{own[0]}" if own else ""
        examples = networks * (self._batch_size or 32)
        return self.executor.choose(self.trainer, self, self.network.linears()[0], examples, obstacle)

    @property
    def _batch_size(self) -> int | None:
        hparams = getattr(self.trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
        size: int | None = hparams.get("batch_size")
        return size

    def on_fit_end(self) -> None:
        """Leave the process's number of threads, and the trainer, as they were."""
        self.executor.stop(self.trainer)

    @property
    def batches_at_once(self) -> Callable[[], int] | None:
        """What a loader that can hand out several batches at once asks for their number; None for one at a time."""
        return self.executor.batches_at_once(self.trainer)

    def on_train_start(self) -> None:
        """Get ready with the optimizer as a checkpoint may have restored it.

        A new cycle begins at its own first rate, where a restored optimizer still has the last of the old one.
        """
        self.executor.prepare_step(self.trainer, self._layers(), self._batch_size, self.network.penalty)
        if self._new_cycle:
            scheduler = self.trainer.lr_scheduler_configs[0].scheduler
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = lr

    def _layers(self) -> nn.Module:
        """What the compiled step runs: the layers alone, without hyperparameters, of which each would be compiled anew.

        The module itself where its forward pass is another one, or is watched.
        """
        hooks = self._forward_pre_hooks or self._forward_hooks or self._backward_pre_hooks or self._backward_hooks
        own = type(self).forward is not MLPClassifier.forward or "forward" in vars(self)
        return self if own or hooks else self.as_sequential()

    def _resume_cycle(self, checkpoint: dict[str, Any]) -> None:
        """See to it that a resumed training has the length that its schedule was made for, or refuse.

        Raises:
            ValueError: If it has another, and `resume_cycle` does not say what to do.
        """
        old, new = checkpoint.get("total_steps"), count_optimizer_steps(self.trainer)
        self._first_step = checkpoint.get("first_step", 0)
        schedule = build_schedule(self.hparams["schedule"])
        if not isinstance(schedule, OneCycle | Cosine) or old is None or old == new:
            return
        name = type(schedule).__name__
        match self.resume_cycle:
            case "finish":
                self.trainer.fit_loop.epoch_loop.max_steps = old
            case "new" if new is None or new > checkpoint["global_step"]:
                self._first_step, self._new_cycle = checkpoint["global_step"], True
                checkpoint["lr_schedulers"] = []
            case _:
                raise ValueError(
                    f"the training has another length than its {name} schedule: expected {old} optimizer steps, as "
                    f"when the checkpoint was written; received {new}. Either finish the old cycle, "
                    "--model.resume_cycle finish, or begin a new one from these weights, --model.resume_cycle new"
                )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, unless it goes by a metric.

        That one is stepped by `on_validation_epoch_end`, before the checkpoint is written: Lightning would step it
        after that, and not at all in an epoch that is resumed.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then impose the network's constraint; if compiled, `training_step` does both."""
        if self.executor.step is not None:
            (args[3] if len(args) > 3 else kwargs["optimizer_closure"])()
            return
        super().optimizer_step(*args, **kwargs)
        self.network.constrain_()

    def training_step(self, batch: Batch | Batches, batch_idx: int) -> Tensor:
        """Return the loss of a batch; if compiled, train on one or several batches and return the last loss."""
        if batch_idx == 0:
            self._check_labels(batch[1])
        batches: Iterable[Batch] = batch.split() if isinstance(batch, Batches) else [batch]
        if self.executor.step is None:
            ((images, labels),) = batches
            logits = self(images)
            loss = F.cross_entropy(logits, labels) + self.network.penalty()
            self._record(logits.detach(), labels, loss)
            return loss
        for images, labels in one_by_one(self.trainer, batches):
            loss, logits = self.executor.step(images, labels)
            self.network.constrain_()
            self._record(logits, labels, loss)
        return loss

    def _record(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Take note of a step for the metrics and the log."""
        self._pending.append((logits, labels))
        if len(self._pending) == METRICS_EVERY:
            self._update_train_metrics()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict({"train_step_loss": loss, "lr": rate}, prog_bar=True, batch_size=len(labels))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, taken while the weights were changing."""
        self._update_train_metrics()
        self._log_and_reset(self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> Predictions | None:
        """Measure a batch; outside of a training, return every way's predictions."""
        logits = self._measure(self.val_metrics, batch)
        if self.trainer.state.fn == TrainerFn.FITTING:
            return None
        if self.calibrate:
            self._pending.append((logits, batch[1]))
        return self._predict_every_way(batch[0], logits)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, step a schedule that goes by one, and calibrate if that was asked for."""
        values = self._log_and_reset(self.val_metrics)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor is not None:
                    config.scheduler.step(values[config.monitor].item())
        if self._pending and self.trainer.state.fn == TrainerFn.VALIDATING:
            logits, labels = map(torch.cat, zip(*self._pending, strict=True))
            self._pending.clear()
            raw = gather(self, logits * self.temperature.value)
            self.log("temperature", self.temperature.fit(raw, gather(self, labels)))

    def test_step(self, batch: Batch, batch_idx: int) -> Predictions:
        """Measure a batch, and return every way's predictions."""
        return self._predict_every_way(batch[0], self._measure(self.test_metrics, batch))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_and_reset(self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor | MCPrediction:
        """Predict images (B, 3, 32, 32), the batch or its first part, by Monte-Carlo dropout if there are samples."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        if self.mc_samples:
            return mc_predict(self, images, self.mc_samples)
        return self._average_members(images, self.predict_proba(images))

    def _average_members(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """The mean of this network's probabilities and those of the other members of the ensemble."""
        members = [member.to(self.device).predict_proba(images) for member in self.members]
        return torch.stack([probabilities, *members]).mean(0)

    def _predict_every_way(self, images: Tensor, logits: Tensor) -> Predictions:
        probabilities = logits.softmax(-1)
        ways: Predictions = {"deterministic": probabilities}
        if self.mc_samples:
            ways[f"MC dropout, {self.mc_samples} samples"] = mc_predict(self, images, self.mc_samples)
        if self.members:
            ways[f"ensemble of {1 + len(self.members)}"] = self._average_members(images, probabilities)
        return ways

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the classes' names, and what was measured of the present epoch, for a resumed one to report it all."""
        self._update_train_metrics()
        checkpoint["classes"] = self.classes
        checkpoint["pretrained"], checkpoint["pretrained_layers"] = self.pretrained, self._reused
        checkpoint["total_steps"], checkpoint["first_step"] = self._total_steps, self._first_step
        if self.executor.execution is not None:
            checkpoint["execution"] = asdict(self.executor.execution)
        checkpoint["train_metrics"] = {
            name: metric.metric_state for name, metric in self.train_metrics.items(keep_base=True)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved."""
        self.classes = checkpoint.get("classes", [])
        self.pretrained, self._reused = checkpoint.get("pretrained"), checkpoint.get("pretrained_layers", 0)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resume_cycle(checkpoint)
            if "execution" in checkpoint:
                self.executor.resumed = Execution(**checkpoint["execution"])
        for name, state in checkpoint.get("train_metrics", {}).items():
            metric = self.train_metrics[name]
            for key, value in state.items():
                setattr(metric, key, value.to(self.device))
            metric._update_count = 1  # or torchmetrics warns that nothing was measured

    def _measure(self, metrics: MetricCollection, batch: Batch) -> Tensor:
        images, labels = batch
        self._check_labels(labels)
        logits: Tensor = self(images).float()
        metrics.update(logits, labels)
        return logits

    def _update_train_metrics(self) -> None:
        if self._pending:
            logits, labels = map(torch.cat, zip(*self._pending, strict=True))
            self.train_metrics.update(logits.float(), labels)
            self._pending.clear()

    def _log_and_reset(self, metrics: MetricCollection) -> dict[str, Tensor]:
        values: dict[str, Tensor] = metrics.compute()
        # (Reduced already; sync_dist says so to Lightning.)
        self.log_dict(values, prog_bar=metrics is self.val_metrics, sync_dist=True)
        metrics.reset()
        return values

    def _check_labels(self, labels: Tensor) -> None:
        num_classes = self.network.output.out_features
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < num_classes:
            raise ValueError(f"wrong labels: expected 0 to {num_classes - 1}, received {low} to {high}")
