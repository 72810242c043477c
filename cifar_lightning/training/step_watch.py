"""Checks what compiled steps take to be constant whenever a callback may have changed it."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from cifar_lightning.compiled.hooks import has_hooks
from cifar_lightning.compiled.watch import Watch
from cifar_lightning.training.obstacles import BATCH_HOOKS, GRADIENT_HOOKS, STEP_METHODS

#: Methods that, if set on the module itself, a compiled step skips or calls once for several batches.
OWN_METHODS = ("forward", *STEP_METHODS, *GRADIENT_HOOKS, *BATCH_HOOKS)
#: The trainer's settings that affect a step, by description.
TRAINER: dict[str, Callable[[Trainer], Any]] = {
    "the list of callbacks": lambda trainer: list(trainer.callbacks),  # type: ignore[attr-defined]
    "the trainer's accumulate_grad_batches": lambda trainer: trainer.accumulate_grad_batches,
    "the trainer's clipping": lambda trainer: (trainer.gradient_clip_val, trainer.gradient_clip_algorithm),
    "the trainer's optimizer": lambda trainer: trainer.optimizers,
}


class StepWatch:
    """Notices when steps are no longer those that were compiled.

    Args:
        trainer: The trainer.
        module: The module that it trains.
        model: The part of the module that the compiled step runs.
        optimizer: Its optimizer, if the step contains its update; None if the optimizer steps itself.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, model: nn.Module, optimizer: Optimizer | None
    ) -> None:
        self._trainer, self._module, self._watch = trainer, module, Watch(model, optimizer)
        self._before = {what: look(trainer) for what, look in TRAINER.items()}

    def find_change(self) -> str:
        """Describe the first change since creation; "" if there is none."""
        own = next((name for name in OWN_METHODS if name in vars(self._module)), "")
        if own or has_hooks(self._module):
            return f"the module's {own or 'hooks'}"
        for what, before in self._before.items():
            if TRAINER[what](self._trainer) != before:
                return what
        return self._watch.find_change()
