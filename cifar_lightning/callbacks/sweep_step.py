"""The steps of a learning-rate sweep, made on a copy of a LightningModule as the trainer would make them."""

import copy
from collections.abc import Mapping
from itertools import chain, islice
from types import TracebackType
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.optim.lr_range_test import PILOT_BATCHES, count_batches, endless, group_factors
from cifar_lightning.optim.restored import set_rates
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.lightning_internals import to_device
from cifar_lightning.training.random_state import collect_generators, restore_generators

#: As many batches in a row may be skipped by a `training_step` that returns None.
MAX_SKIPPED = 1000


class SweepStep:
    """An optimizer step at a given rate, on a copy of the module; a context in which the trainer logs nothing.

    Args:
        trainer: The trainer, before its first step.
        pl_module: The module, which is left as it is.
        loader: The training's loader. The generators that it draws from are restored at the end.
        given: The rate that the optimizer was made for; the swept one takes its place.
        num_steps: Number of steps of the sweep.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, loader: Any, given: Any, num_steps: int) -> None:
        self.trainer, self.num_steps = trainer, num_steps
        self.module = copy.deepcopy(pl_module)
        self.module.trainer = trainer
        self.module.train()
        for name in ("log", "log_dict"):  # nothing goes into the run's metrics
            setattr(self.module, name, _log_nothing)
        self.optimizer = _one_optimizer(self.module)
        self.factors = group_factors(self.optimizer, given if isinstance(given, float | int) else None)
        self.generators = [(generator, generator.get_state()) for generator in _generators(loader)]
        self.batches = endless(loader)
        self.scaler = copy.deepcopy(getattr(trainer.precision_plugin, "scaler", None))
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.probe: list[Any] = []
        self.index = 0

    def __enter__(self) -> Self:
        """Start the copy's training, and choose on how many batches to measure a loss."""
        self.loggers, self.optimizers = self.trainer.loggers, self.trainer.optimizers
        self.trainer.loggers = [DummyLogger() for _ in self.loggers]
        self.trainer.optimizers = [self.optimizer]
        try:
            if isinstance(self.module, MLPClassifier):
                self.module.executor.execution = None  # its steps are plain ones: to compile them takes a minute
            else:
                self.module.on_fit_start()
            self.module.on_train_start()
            self.module.on_train_epoch_start()
            self._start_averaging()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the trainer its loggers and optimizer back, and leave a loader that the run will use as it was."""
        self.trainer.loggers, self.trainer.optimizers = self.loggers, self.optimizers
        for generator, state in self.generators:
            generator.set_state(state)

    def _start_averaging(self) -> None:
        """Measure some batches, which the sweep then begins with, to see how noisy the loss is.

        What each loss is averaged over is not trained on, as long as there are other batches: a network that learns
        nothing but these by heart would seem to descend.
        """
        pilot = list(islice(self.batches, PILOT_BATCHES))
        generators, state = collect_generators(), copy.deepcopy(self.module.state_dict())
        with torch.no_grad():
            losses = [loss.item() for batch in pilot if (loss := self._measure(batch)) is not None]
        if len(losses) > 1:
            missing = count_batches(self._mean(losses), self.num_steps) - self.trainer.accumulate_grad_batches
            self.probe = list(islice(self.batches, max(missing, 0)))
        self.batches = chain(pilot, self.batches)
        self.module.load_state_dict(state)
        restore_generators(generators)

    def _mean(self, losses: list[float]) -> list[float]:
        """The losses, averaged over ranks, which then choose alike."""
        if self.trainer.world_size == 1:
            return losses
        total = self.trainer.strategy.reduce(torch.tensor(losses, device=self.module.device), reduce_op="mean")
        return [float(loss) for loss in total]

    def __call__(self, lr: float) -> float:
        """Step at rate `lr`; return the loss before, averaged over batches and ranks."""
        for _ in range(MAX_SKIPPED):
            set_rates(self.optimizer, [lr * factor for factor in self.factors])
            batches = list(islice(self.batches, self.trainer.accumulate_grad_batches))
            others = []
            with torch.no_grad():
                for batch in self.probe:
                    if (other := self._measure(batch)) is not None:
                        others.append(other.item())
            loss = self._evaluate(batches)
            self.index += len(batches)
            if loss is not None:
                self._update(batches, loss)
                total = loss.item() * len(batches) + sum(others)
                return self._mean([total / (len(batches) + len(others))])[0]
        raise ValueError(
            f"nothing to sweep over: expected a training_step that returns a loss; got None {MAX_SKIPPED} times"
        )

    def _measure(self, batch: Any) -> Tensor | None:
        """The module's loss of a batch from the loader."""
        batch = to_device(self.trainer, batch)
        self.module.on_train_batch_start(batch, self.index)
        with self.trainer.precision_plugin.train_step_context():
            output: Any = self.module.training_step(*((batch, self.index) if self.takes_index else (batch,)))
        outputs: dict[str, Any] = dict(output) if isinstance(output, Mapping) else {"loss": output}
        loss: Tensor | None = outputs["loss"]
        outputs = {} if loss is None else outputs | {"loss": loss.detach()}  # as Lightning hands them on
        self.module.on_train_batch_end(outputs, batch, self.index)
        return loss

    def _evaluate(self, batches: list[Any]) -> Tensor | None:
        """The loss of a step's batches, with its gradients in place; None if the module skips all of them."""
        trainer, module = self.trainer, self.module
        module.on_before_zero_grad(self.optimizer)
        module.optimizer_zero_grad(trainer.current_epoch, self.index, self.optimizer)
        losses = []
        for batch in batches:
            if (loss := self._measure(batch)) is None:
                continue
            losses.append(loss.detach())
            loss = loss / len(batches)
            loss = self.scaler.scale(loss) if self.scaler else loss
            module.on_before_backward(loss)
            module.backward(loss)
            module.on_after_backward()
        if not losses:
            return None
        if trainer.world_size > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        module.on_before_optimizer_step(self.optimizer)
        module.configure_gradient_clipping(
            self.optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        return torch.stack(losses).mean()

    def _update(self, batches: list[Any], loss: Tensor) -> None:
        """Change the weights by the gradients in place."""
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        ready = [loss]

        def closure() -> Tensor | None:
            return ready.pop() if ready else self._evaluate(batches)  # LBFGS evaluates at other weights too

        # Through the module, which may do more than step: impose a constraint, say.
        with torch.enable_grad():
            self.module.optimizer_step(self.trainer.current_epoch, self.index, self.optimizer, closure)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators of its own that a loader draws from."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [generator for part in parts if (generator := getattr(part, "generator", None)) is not None]
    return list(dict.fromkeys(found))


def _one_optimizer(module: LightningModule) -> Optimizer:
    if not module.automatic_optimization:
        raise ValueError("LRFinder needs automatic optimization: expected one optimizer, got a manual loop")
    configured = module.configure_optimizers()
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        configured = configured[0]  # ([optimizers], [schedulers])
    optimizers: list[Any] = list(configured) if isinstance(configured, list | tuple) else [configured]
    optimizers = [each["optimizer"] if isinstance(each, dict) else each for each in optimizers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise ValueError(f"LRFinder needs one optimizer: expected exactly one, got {len(optimizers)}")
    return optimizers[0]


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass
