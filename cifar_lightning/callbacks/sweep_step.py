"""The steps of a learning-rate sweep, run on a copy of a LightningModule as the trainer would run them."""

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

#: Maximum number of consecutive batches that a `training_step` may skip by returning None.
MAX_SKIPPED = 1000


class SweepStep:
    """Takes optimizer steps at given rates on a copy of the module; a context in which the trainer logs nothing.

    Args:
        trainer: The trainer, before its first step.
        pl_module: The module, which stays unchanged.
        loader: The training loader. Its random generators are restored at the end.
        given: The rate that the optimizer was made for, which the swept rate replaces.
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
                self.module.executor.execution = None  # steps run uncompiled: compiling them would take a minute
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
        """Restore the trainer's loggers and optimizers, and the generators of a loader that the run will use."""
        self.trainer.loggers, self.trainer.optimizers = self.loggers, self.optimizers
        for generator, state in self.generators:
            generator.set_state(state)

    def _start_averaging(self) -> None:
        """Measure how noisy the loss is on some batches, with which the sweep then starts.

        The batches that each loss is averaged over are not trained on while there are others: memorizing them would
        look like a descent.
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
        """The losses, averaged over ranks, so that all ranks make the same choice."""
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
            f"nothing to sweep over: expected a training_step that returns a loss, got None {MAX_SKIPPED} times"
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
        """Update the weights with the current gradients."""
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        ready = [loss]

        def closure() -> Tensor | None:
            return ready.pop() if ready else self._evaluate(batches)  # LBFGS evaluates at other weights too

        # Through the module, which may do more than step, such as enforce a constraint.
        with torch.enable_grad():
            self.module.optimizer_step(self.trainer.current_epoch, self.index, self.optimizer, closure)


def _generators(loader: Any) -> list[torch.Generator]:
    """The loader's own random generators."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [generator for part in parts if (generator := getattr(part, "generator", None)) is not None]
    return list(dict.fromkeys(found))


def _one_optimizer(module: LightningModule) -> Optimizer:
    if not module.automatic_optimization:
        raise ValueError("LRFinder needs automatic optimization, got manual optimization")
    configured = module.configure_optimizers()
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        configured = configured[0]  # ([optimizers], [schedulers])
    optimizers: list[Any] = list(configured) if isinstance(configured, list | tuple) else [configured]
    optimizers = [each["optimizer"] if isinstance(each, dict) else each for each in optimizers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise ValueError(f"LRFinder needs exactly one optimizer, got {len(optimizers)}")
    return optimizers[0]


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass
