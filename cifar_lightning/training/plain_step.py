"""A training step as torch and Lightning make it, for a training whose steps were compiled until now."""

from collections.abc import Callable

import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


class PlainStep:
    """One step of training, to be called as `loss, logits = step(inputs, targets)`, as `CompiledStep` is.

    Args:
        trainer: Says how gradients are clipped.
        module: Maps inputs (B, ...) to logits (B, C).
        penalty: Computes what is added to the cross-entropy.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, penalty: Callable[[], Tensor | float]) -> None:
        self._trainer, self._module, self._penalty = trainer, module, penalty

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters; return the loss (), and the logits (B, C) from before the update."""
        (optimizer,) = self._trainer.optimizers
        logits = self._module(inputs)
        loss = F.cross_entropy(logits, targets) + self._penalty()
        optimizer.zero_grad()
        loss.backward()
        self._module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=self._trainer.gradient_clip_val,
            gradient_clip_algorithm=self._trainer.gradient_clip_algorithm,
        )
        optimizer.step()
        return loss.detach(), logits.detach()

    def close(self) -> None:
        """Nothing is to be undone."""
