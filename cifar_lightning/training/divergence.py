"""A training ends at the step where its loss is not a finite number any more."""

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
    """Check the loss of a step, on all ranks: a rank whose loss is finite ends with the others.

    To look at a loss on a GPU is to wait for it, so there only those are looked at that are logged anyway.

    Args:
        module: What is trained, with the weights from before the step's update.
        loss: (), of the step.
        images: (B, 3, 32, 32), of the step.
        before: Images and labels of the step before, where its gradients are not kept.

    Raises:
        DivergenceError: If the loss is infinite or NaN; it says where that began and what may help.
    """
    trainer, step = module.trainer, module.global_step + 1
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if loss.device.type != "cpu" and not (every and step % every == 0):
        return
    is_wrong = not bool(torch.isfinite(loss))
    if not is_true_anywhere(trainer, is_wrong):
        return
    # All ranks call the module: its layers may exchange statistics.
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
        said.append(f"norm of the last gradients {torch.nn.utils.get_total_norm(gradients):.3g}")
    layer = first_layer_not_finite(module, images) or "none, for the loss itself overflows"
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    kept = ", ".join(path for path in paths if path) or "none"
    return (
        f"the loss is {loss.item()} in step {step:,} ({', '.join(said)}); the first layer whose output is not finite "
        f"is {layer}. Expected a finite loss: try a lower learning rate, --trainer.gradient_clip_val 1, or "
        f"standardized images. Checkpoints from before: {kept}"
    )


def _last_gradients(module: LightningModule, before: Batch | None) -> list[Tensor]:
    """The gradients of the step before; computed anew, at the weights after it, where a compiled step keeps none."""
    if before is None:
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    images, labels = before
    with torch.enable_grad():
        loss = F.cross_entropy(module(as_floats(images)), labels)
        return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=False))
