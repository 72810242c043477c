"""Stops training at the first step whose loss is not finite."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from cifar_lightning.analysis.signals import first_layer_not_finite
from cifar_lightning.data.batches import as_floats
from cifar_lightning.errors import DivergenceError
from cifar_lightning.training.ranks import gather_objects, is_true_anywhere

Batch = tuple[Tensor, Tensor]


def check_loss(module: LightningModule, loss: Tensor, images: Tensor, before: Batch | None = None) -> None:
    """Check the loss of a step on all ranks; ranks with a finite loss stop together with the others.

    Reading a loss on a GPU means waiting for it, so there only the logged steps are checked.

    Args:
        module: The module, with the weights from before the step's update.
        loss: (), the loss of the step.
        images: (B, 3, 32, 32), the images of the step.
        before: Images and labels of the previous step, if its gradients are not kept.

    Raises:
        DivergenceError: If the loss is infinite or NaN. The message says where that began and what may help.
    """
    trainer, step = module.trainer, module.global_step + 1
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if loss.device.type != "cpu" and not (every and step % every == 0):
        return
    is_wrong = not bool(torch.isfinite(loss))
    if not is_true_anywhere(trainer, is_wrong):
        return
    # All ranks must call the module, since its layers may exchange statistics.
    said = gather_objects(trainer, _describe(module, loss, images, before))
    wrong = gather_objects(trainer, is_wrong)
    raise DivergenceError(said[wrong.index(True)])


def _describe(module: LightningModule, loss: Tensor, images: Tensor, before: Batch | None) -> str:
    trainer, step = module.trainer, module.global_step + 1
    (group, *_) = trainer.optimizers[0].param_groups
    said = [f"epoch {trainer.current_epoch + 1}", f"learning rate {group['lr']:.3g}"]
    if trainer.world_size > 1:
        said.append(f"rank {trainer.global_rank}")
    if gradients := _last_gradients(module, before):
        said.append(f"last gradient norm {torch.nn.utils.get_total_norm(gradients):.3g}")
    layer = first_layer_not_finite(module, images) or "none: the loss itself overflows"
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    kept = ", ".join(path for path in paths if path) or "none"
    return (
        f"the loss is {loss.item()} in step {step:,} ({', '.join(said)}); the first layer whose output is not finite "
        f"is {layer}. Expected a finite loss: try a lower learning rate, --trainer.gradient_clip_val 1, or "
        f"standardized images. Earlier checkpoints: {kept}"
    )


def _last_gradients(module: LightningModule, before: Batch | None) -> list[Tensor]:
    """The gradients of the previous step; recomputed, at the weights after it, if a compiled step keeps none."""
    if before is None:
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    images, labels = before
    with torch.enable_grad():
        loss = F.cross_entropy(module(as_floats(images)), labels)
        return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=False))
