"""A training ends at the step where its loss is not a finite number any more."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from cifar_lightning.analysis.signals import first_layer_not_finite
from cifar_lightning.errors import DivergenceError


def check_loss(module: LightningModule, loss: Tensor, images: Tensor | None) -> None:
    """Check the loss of a step.

    To look at a loss on a GPU is to wait for it, so there only those are looked at that are logged anyway.

    Args:
        module: What is trained.
        loss: (), of the step.
        images: (B, 3, 32, 32), of the step, if the weights are those from before the update: then they tell the layer.

    Raises:
        DivergenceError: If the loss is infinite or NaN; it says where that began and what may help.
    """
    trainer, step = module.trainer, module.global_step + 1
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if loss.device.type != "cpu" and not (every and step % every == 0):
        return
    if torch.isfinite(loss):
        return
    (group, *_) = trainer.optimizers[0].param_groups
    said = [f"epoch {trainer.current_epoch + 1}", f"learning rate {group['lr']:.3g}"]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]  # of the step before, if steps are plain
    if gradients:
        said.append(f"norm of the last gradients {torch.nn.utils.get_total_norm(gradients):.3g}")
    if images is None:
        where = "--execution.compile never tells the first layer whose output is not finite"
    else:
        layer = first_layer_not_finite(module, images) or "none, for the loss itself overflows"
        where = f"the first layer whose output is not finite is {layer}"
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    kept = ", ".join(path for path in paths if path) or "none"
    raise DivergenceError(
        f"the loss is {loss.item()} in step {step:,} ({', '.join(said)}); {where}. Expected a finite loss: try a lower "
        f"learning rate, --trainer.gradient_clip_val 1, or standardized images. Checkpoints from before: {kept}"
    )
