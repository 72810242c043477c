"""Plots training images with their augmentation, without training."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_lightning.analysis.plots import draw_variants
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.data.augment import Augmentation, Variants
from cifar_lightning.data.batches import BatchOrder
from cifar_lightning.data.soft_labels import SoftLabels
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule
from cifar_lightning.training.lightning_internals import stop_before_training
from cifar_lightning.training.run_events import show_picture

FILE = "training_images.png"


class TrainingImages(Callback):
    """Plots images as training would see them, as `training_images.png`, and stops before training.

    Each row shows an image, first unchanged, then as in successive epochs: mirrored, shifted, and mixed with another
    image of the plot. The captions give its target classes.

    Args:
        num_images: Number of images, the first ones of the training split.
        num_epochs: Number of epochs.

    Raises:
        ValueError: If a number is below 1; from `fit`, if the data module is not a `CIFAR10DataModule`.
    """

    def __init__(self, num_images: int = 8, num_epochs: int = 9) -> None:
        for name, number in (("num_images", num_images), ("num_epochs", num_epochs)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.num_images, self.num_epochs = num_images, num_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot and stop."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CIFAR10DataModule):
            raise ValueError(f"no training images to show: expected a CIFAR10DataModule, got {type(data).__name__}")
        if is_writer(trainer):
            folder = run_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            soften = pl_module.soft_labels if isinstance(pl_module, MLPClassifier) else None
            variants, captions = self._make(data, soften)
            columns = ["original", *(f"epoch {epoch + 1}" for epoch in range(self.num_epochs))]
            title = f"{folder.parent.name} on {data_set_name(trainer)}: training images"
            draw_variants(variants, captions, columns, folder / FILE, title)
            show_picture(trainer, folder / FILE)
            say_where(folder, [FILE], "cifar-lightning fit, with the same options")
        stop_before_training(trainer)

    def _make(self, data: CIFAR10DataModule, soften: SoftLabels | None) -> tuple[Tensor, list[list[str]]]:
        """The images (N, 1 + E, C, H, W) and their captions."""
        images, labels = data.first_training_images(self.num_images)
        assert data.images is not None, "the training images are there"
        names = data.images.classes
        order = BatchOrder(range(len(images)), len(images), True, data.state_dict()["order_seed"])
        vary = Variants(images, Augmentation(data.hparams["flip"], data.hparams["shift"]), order)
        columns, captions = [images.float()], [[names[label] for label in labels.tolist()]]
        for epoch in range(self.num_epochs):
            order.set_epoch(epoch)
            shown, targets = vary(torch.arange(len(images))), labels
            if soften is not None:
                shown, targets = soften(shown, labels)
            columns.append(shown.float())
            captions.append([_caption(target, names) for target in targets])
        return torch.stack(columns, 1), [list(row) for row in zip(*captions, strict=True)]


def _caption(target: Tensor, names: list[str] | tuple[str, ...]) -> str:
    """The class of a label (), or the two largest of probabilities (K,)."""
    if target.ndim == 0:
        return names[int(target)]
    shares, classes = target.topk(min(2, len(target)))
    first, *second = (f"{names[k]} {share:.0%}" for k, share in zip(classes.tolist(), shares.tolist(), strict=True))
    is_mixed = len(shares) > 1 and shares[1] > 1.5 * target.min()  # more than its share of label smoothing
    return "\n".join([first, *second]) if is_mixed else first
