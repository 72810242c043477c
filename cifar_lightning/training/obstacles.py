"""Finds what prevents steps from being compiled, or from running several at a time in one trainer hook."""

from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import LBFGS

from cifar_lightning.compiled.cuda_graph import makes_graphs
from cifar_lightning.compiled.hooks import has_hooks
from cifar_lightning.compiled.step import find_misfit, has_compiler
from cifar_lightning.compiled.watch import find_hooks
from cifar_lightning.training.lightning_internals import detects_anomalies
from cifar_lightning.training.resume import ExactResume

#: Callbacks that allow several steps at once; a subclass with its own hooks does not, unless it is a progress bar.
PATIENT_CALLBACKS = (ExactResume, ModelCheckpoint, ProgressBar, Timer, WeightAveraging)
#: Callbacks that change during training what a step does.
REBUILDERS = (BaseFinetuning, GradientAccumulationScheduler, ModelPruning, StochasticWeightAveraging)
#: Hooks that run between a step's gradients and its update.
GRADIENT_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
#: Packages whose layers work in CUDA graphs, or are not part of a step.
KNOWN_PACKAGES = ("torch", "torchmetrics", "lightning", "cifar_lightning")
BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")
#: Methods that make a subclass's steps differ from the compiled ones.
STEP_METHODS = (
    *("training_step", "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    "on_train_batch_start",  # which checks that the compiled code is still valid
)


def find_obstacle(trainer: Trainer, module: LightningModule) -> str:
    """The feature of this run that a compiled step does not support; "" if there is none."""
    if trainer.world_size > 1:
        return f"{trainer.world_size} devices"
    if trainer.accumulate_grad_batches > 1:
        return "accumulated gradients"
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
        return f"precision {trainer.precision}"
    device = trainer.strategy.root_device
    if device.type not in ("cpu", "cuda"):
        return f"a device of type {device.type}"
    if not makes_graphs(device) and not has_compiler():
        return "no C++ compiler"
    if isinstance(trainer.optimizers[0], LBFGS):
        return "LBFGS"
    if detects_anomalies(trainer):
        return "anomaly detection"
    for owner, base in ((module, LightningModule), (trainer.datamodule, LightningDataModule)):  # type: ignore[attr-defined]
        for hook in TRANSFER_HOOKS:
            if owner is not None and is_overridden(hook, owner, base):
                return f"{type(owner).__name__}.{hook}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, REBUILDERS):
            return type(callback).__name__
    if misfit := find_misfit(module, trainer.optimizers[0]):
        return misfit
    if hooks := find_hooks(module):
        return hooks
    watcher = _first(_names_with(trainer, module, GRADIENT_HOOKS))
    return f"{watcher}, which follows each gradient" if watcher else ""


def find_own_steps(module: LightningModule, base: type[LightningModule]) -> str:
    """The step method of `base` that a subclass or an instance overrides; "" if there is none."""
    for name in STEP_METHODS:
        if getattr(type(module), name) is not getattr(base, name) or name in vars(module):
            return f"{type(module).__name__}.{name}"
    return ""


def has_own_forward(module: LightningModule, base: type[LightningModule]) -> bool:
    """Whether a module's forward pass differs from that of `base`, or has hooks.

    Otherwise only its layers are compiled, without the hyperparameters, which would otherwise need separate code each.
    """
    return type(module).forward is not base.forward or "forward" in vars(module) or has_hooks(module)


def find_foreign_layer(module: nn.Module) -> str:
    """The name of the first class in a module whose forward pass is neither torch's nor ours; "" if there is none."""
    for part in module.modules():
        if type(part).forward.__module__.partition(".")[0] not in KNOWN_PACKAGES or "forward" in vars(part):
            return type(part).__name__
    return ""


def find_watcher(trainer: Trainer, module: LightningModule) -> str:
    """The name of what follows each batch, so that steps must run one at a time; "" if there is nothing."""
    return _first(_names_with(trainer, module, BATCH_HOOKS)) or _first(_midway_savers(trainer))


def _names_with(trainer: Trainer, module: LightningModule, hooks: Sequence[str]) -> Iterator[str]:
    """Names of the callbacks, and the module, that have one of the hooks."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        known = next((cls for cls in PATIENT_CALLBACKS if isinstance(callback, cls)), Callback)
        if known is not ProgressBar and any(is_overridden(hook, callback, known) for hook in hooks):
            yield type(callback).__name__
    # (`find_own_steps` looks for overridden step methods.)
    if any(is_overridden(hook, module, LightningModule) for hook in set(hooks) - set(STEP_METHODS)):
        yield type(module).__name__


def _midway_savers(trainer: Trainer) -> Iterator[str]:
    """Names of the callbacks that save when training is interrupted, even between two steps of a hook."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OnExceptionCheckpoint) or getattr(callback, "save_on_exception", False):
            yield type(callback).__name__


def _first(names: Iterator[str]) -> str:
    return next(names, "")
