"""CIFAR-10 for Lightning: source, split, standardization and loaders."""

from collections.abc import Callable, Sized
from hashlib import blake2b
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifar_lightning.data.augment import Augmentation, Variants
from cifar_lightning.data.availability import load_images, make_available
from cifar_lightning.data.batches import (
    BatchOrder,
    InMemoryImages,
    JoinedOrder,
    ResumableLoader,
    ValSplit,
    make_loader,
    split_indices,
)
from cifar_lightning.data.image_files import SHAPE, FileBatch, ImageFiles, find_images
from cifar_lightning.data.sources import ImageSet, Source, select_classes
from cifar_lightning.errors import unknown_name
from cifar_lightning.nn.standardize import Scaling, Standardize, Statistics, compute_statistics
from cifar_lightning.training.byte_images import standardizer, takes_bytes
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.lightning_internals import global_seed

Loader = DataLoader[tuple[Tensor, Tensor]]
BatchPer = Literal["device", "step"]


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10 in memory as uint8; a batch is (images (B, 3, 32, 32) uint8, labels (B,) int64).

    The classifier casts and standardizes a batch on its device, with the statistics that are computed here from the
    training split. A module that has no `Standardize` gets its batches from the trainer standardized, as float32.

    Args:
        data_dir: Directory of the official files; by default the environment variable CIFAR10_DIR, else "data".
        source: cifar10 takes the official files, synthetic makes images up, and cifar10_or_synthetic makes them up
            (and says so) only if CIFAR-10 is neither on the disk nor in reach. folder takes your own images, a folder
            for each class in data_dir, or in its folders train and test; fashion_mnist its official files.
        download: Whether to download the official archive into the directory if it is not there.
        synthetic_size: Number of training images that are made up; a fifth as many test images.
        val_split: Which training images are held out for validation; stratified is random with each class in its
            share.
        val_size: Their number, or their fraction of the training images as a float below 1.
        val_seed: Seed of a random split.
        classes: The classes to tell apart, each by its name or its index; the images of others are left out, and labels
            count in the order given. The split is that of all images, so which ones are held out does not depend on it.
        train_size: Number of training images, the first ones of the training split, of which the statistics are then
            taken too; by default all.
        scaling: raw is 0 to 255, unit divides by 255, channel and feature standardize by 3 and by 3,072 means and
            deviations of the training split.
        flip: Whether training images are mirrored left to right with a probability of 1/2.
        shift: The largest number of pixels by which a training image is moved horizontally and vertically, at random;
            what comes in at an edge is its own reflection.
        batch_size: Number of training images a step, on each device or on all together.
        batch_per: Which of the two: device, so that more devices make larger steps, or step, so that they share a step
            of this size, and a training on any number of devices is the same. The learning rate is as given either way.
        eval_batch_size: Number of images a batch in validation, testing and prediction.
        images: For `predict`, image files, folders or globs in the place of the test images.
        order_seed: Seed of the order of the training images; by default the one of `seed_everything`, else 0.

    Raises:
        ValueError: For a batch size below 1; from `setup`, for data or a split that can't be had.

    Example:
        >>> from cifar_lightning import CIFAR10DataModule
        >>> data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20, batch_size=16)
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([16, 3, 32, 32]), torch.uint8, torch.Size([16]))
    """

    def __init__(
        self,
        data_dir: str | None = None,
        source: Source = "cifar10",
        download: bool = True,
        synthetic_size: int = 50_000,
        val_split: ValSplit = "first",
        val_size: int | float = 5000,
        val_seed: int = 42,
        classes: list[int | str] | None = None,
        train_size: int | None = None,
        scaling: Scaling = "feature",
        flip: bool = False,
        shift: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 1000,
        images: list[str] | str | None = None,
        order_seed: int | None = None,
        batch_per: BatchPer = "device",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["images"])  # what is predicted is no property of the training
        for name in ("batch_size", "eval_batch_size", "synthetic_size"):
            if self.hparams[name] < 1:
                raise ValueError(f"{name} out of range: expected at least 1, received {self.hparams[name]}")
        self._augmentation = Augmentation(flip, shift)
        if batch_per not in get_args(BatchPer):
            raise unknown_name("batch_per", batch_per, get_args(BatchPer))
        self.files = find_images(images) if images else []
        self._resumed_seed: int | None = None
        self.images: ImageSet | None = None
        self.statistics: Statistics | None = None
        self._train: Tensor = torch.empty(0, dtype=torch.long)
        self._val: Tensor = torch.empty(0, dtype=torch.long)

    def __repr__(self) -> str:
        what = f"{self.hparams['source']}, not set up yet"
        if self.images is not None:
            sizes = *self.split_sizes, len(self.images.test_labels)
            what = "{}: {:,} training, {:,} validation, {:,} test images".format(self.data_set, *sizes)
        return f"CIFAR10DataModule({what}; {self.hparams['scaling']} scaling, batches of {self.hparams['batch_size']})"

    def prepare_data(self) -> None:
        """Make the files available, once a machine: download them if they are missing and allowed to be."""
        if not self._needs_files_only:
            make_available(self.hparams["source"], self.hparams["data_dir"], self.hparams["download"])

    def setup(self, stage: str | None = None) -> None:
        """Load the images, split them, and compute the statistics of the training split."""
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError(
                "overfit_batches would put Lightning's sampler in the place of ours: expected "
                "--trainer.limit_train_batches, received --trainer.overfit_batches"
            )
        if stage == "fit":
            self._resumed_seed = None  # of an earlier fit; a checkpoint is loaded later
        if self.images is not None or self._needs_files_only:
            return
        images = load_images(self.hparams["source"], self.hparams["data_dir"], self.hparams["synthetic_size"])
        train, val = split_indices(
            images.train_labels, self.hparams["val_split"], self.hparams["val_size"], self.hparams["val_seed"]
        )
        if (classes := self.hparams["classes"]) is not None:
            images, places = select_classes(images, classes)
            train, val = (places[part][places[part] >= 0] for part in (train, val))
            if not len(val):
                raise ValueError(
                    f"no validation images: expected a val_size that holds out some of {', '.join(images.classes)}; "
                    f"received {self.hparams['val_size']}"
                )
        if (size := self.hparams["train_size"]) is not None and not 1 <= size <= len(train):
            raise ValueError(
                f"train_size out of range: expected 1 to {len(train)}, the size of the training split; received {size}"
            )
        self._train, self._val = train[:size], val
        self.statistics = compute_statistics(images.train_images, self.hparams["scaling"], self._train)
        self.images = images
        self.save_hyperparameters({"data_set": images.name})  # for every log of the run

    @property
    def data_set(self) -> str:
        """Name of the data set that is in use, for logs and titles."""
        return self._loaded.name

    @property
    def fingerprint(self) -> str | None:
        """A digest of images, labels and split, the same wherever the data come from; None before `setup`."""
        digest, images = blake2b(digest_size=16), self.images
        if images is None:
            return None
        parts = (images.train_images, images.train_labels, images.test_images, images.test_labels)
        for part in (*parts, self._train, self._val):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def split_sizes(self) -> tuple[int, int]:
        """Number of training and of validation images."""
        return len(self._train), len(self._val)

    @property
    def _loaded(self) -> ImageSet:
        if self.images is None:
            raise ValueError("no images yet: expected prepare_data() and setup() first, received neither")
        return self.images

    def first_training_images(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 32, 32), uint8, and labels (N,) of the training split's first N, at most `count`."""
        images, first = self._loaded, self._train[:count]
        return images.train_images[first], images.train_labels[first]

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training split, an order for each epoch.

        A module that names several seeds as `order_seeds` gets images (S, B, 3, 32, 32) and labels (S, B).
        """
        images = self._loaded
        executor: Any = getattr(self._module, "executor", None)
        # (Variants are made on the CPU, and moved to the device as batches.)
        known = isinstance(executor, Executor) and not self._augmentation
        device = executor.device_of_images if known else None
        split = InMemoryImages(images.train_images, images.train_labels, self._train, device)
        size = self.device_batch_size
        order = self._order(split, size, shuffle=True)
        seeds = getattr(self._module, "order_seeds", [])
        if seeds and self.hparams["order_seed"] is None:
            order = JoinedOrder(split, size, seeds) if len(seeds) > 1 else BatchOrder(split, size, True, *seeds)
        if self._augmentation:
            split.variants = Variants(images.train_images, self._augmentation, order)
        order.batches_at_once = getattr(self._module, "batches_at_once", None)
        return make_loader(split, order, ResumableLoader, self._convert)

    @property
    def device_batch_size(self) -> int:
        """Number of training images a step on each device.

        Raises:
            ValueError: If the devices can't share a step evenly.
        """
        size, ranks = int(self.hparams["batch_size"]), self.trainer.world_size if self.trainer else 1
        if self.hparams["batch_per"] == "device":
            return size
        if size % ranks:
            raise ValueError(
                f"a step that {ranks} devices can't share: expected a batch_size that is a multiple of {ranks}, or "
                f"batch_per device; received {size}"
            )
        return size // ranks

    def val_dataloader(self) -> Loader:
        """The validation split, in order."""
        images = self._loaded
        return self._in_order(InMemoryImages(images.train_images, images.train_labels, self._val))

    def test_dataloader(self) -> Loader:
        """The test images, in order."""
        images = self._loaded
        return self._in_order(InMemoryImages(images.test_images, images.test_labels))

    def predict_dataloader(self) -> Loader | DataLoader[FileBatch]:
        """The image files that were named, or else the test images, in order."""
        return self._in_order(ImageFiles(self.files, self._image_shape)) if self.files else self.test_dataloader()

    @property
    def _image_shape(self) -> tuple[int, ...]:
        """Shape of the images that the module takes, (C, H, W)."""
        standardize = getattr(self._module, "standardize", None)
        if isinstance(standardize, Standardize):
            return tuple(standardize.mean.shape)
        return SHAPE if self.images is None else self.images.shape

    def _in_order(self, data: InMemoryImages | ImageFiles) -> DataLoader[Any]:
        return make_loader(data, self._order(data, self.hparams["eval_batch_size"]), convert=self._convert)

    def _order(self, data: Sized, batch_size: int, shuffle: bool = False) -> BatchOrder:
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return BatchOrder(data, batch_size, shuffle, self._order_seed(), *ranks)

    @property
    def _module(self) -> nn.Module | None:
        """The module that the trainer runs, if there is one."""
        return getattr(self.trainer, "lightning_module", None)

    @property
    def _needs_files_only(self) -> bool:
        """Whether the data set is not needed: only image files are predicted, by a module with statistics of its own.

        (Those of a checkpoint are loaded later.)
        """
        predicts = self.trainer is None or self.trainer.state.fn == TrainerFn.PREDICTING
        return bool(self.files) and predicts and takes_bytes(self._module)

    @property
    def _convert(self) -> Callable[[Any], Any] | None:
        """What standardizes a batch for a module that does not do so itself; None for one that does."""
        return None if self.statistics is None or takes_bytes(self._module) else standardizer(self.statistics)

    def _order_seed(self) -> int:
        for seed in (self.hparams["order_seed"], self._resumed_seed, global_seed()):
            if seed is not None:
                return int(seed)
        return 0

    def on_exception(self, exception: BaseException) -> None:
        """Note on an error for want of memory on a GPU which batch size to try."""
        if isinstance(exception, torch.OutOfMemoryError) and self.trainer is not None:
            name = "batch_size" if self.trainer.training else "eval_batch_size"
            if (size := self.hparams[name]) > 1:
                exception.add_note(f"expected batches that fit: try --data.{name} {size // 2}; received {size}")

    def state_dict(self) -> dict[str, Any]:
        """The data set and the seed of its order, so that a resume can't go on with others."""
        return {"data_set": self.data_set, "order_seed": self._order_seed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a resumed run goes on with the data set that it began with, in the order that it began with.

        Raises:
            ValueError: If it does not.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and state["data_set"] != self.data_set:
            raise ValueError(
                f"another data set: expected {state['data_set']!r}, on which the checkpoint was trained; "
                f"received {self.data_set!r}"
            )
        if fitting:
            self._resumed_seed = state["order_seed"]
