"""The data module: source, split, standardization and loaders."""

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
from cifar_lightning.primitives import as_primitives
from cifar_lightning.training.byte_images import standardizer, takes_bytes
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.lightning_internals import global_seed

Loader = DataLoader[tuple[Tensor, Tensor]]
BatchPer = Literal["device", "step"]


class CIFAR10DataModule(LightningDataModule):
    """Images in memory as uint8, by default CIFAR-10. A batch is (images (B, 3, 32, 32) uint8, labels (B,) int64).

    The classifier casts and standardizes batches on its device, using the training split's statistics, which are
    computed here. A module without a `Standardize` receives batches that are already standardized, as float32.

    Args:
        data_dir: Directory of the images. By default the environment variable CIFAR10_DIR, else "data".
        source: cifar10 reads the official files; synthetic generates images; cifar10_or_synthetic generates them (and
            says so) only if CIFAR-10 is not on disk and cannot be downloaded; folder reads your own images, one folder
            per class in data_dir or in its folders train and test; fashion_mnist reads its official files.
        download: Whether to download the official archive into data_dir if it is missing.
        synthetic_size: Number of synthetic training images; there are a fifth as many test images.
        val_split: Which training images are held out for validation; stratified is random, with each class in
            proportion.
        val_size: Number of validation images, or their fraction of the training images as a float below 1.
        val_seed: Seed of a random split.
        classes: The classes to keep, by name or index, with labels in this order; all by default. The split does not
            depend on it.
        train_size: Number of training images: the first ones of the training split, which the statistics then cover
            too. All by default.
        scaling: raw keeps 0 to 255, unit divides by 255, channel and feature standardize with the training split's
            means and deviations per channel (3) or per value (3,072).
        flip: Whether to mirror training images left to right with a probability of 1/2.
        shift: Largest random shift of training images in pixels, horizontally and vertically; the edge that becomes
            free shows the image's reflection.
        batch_size: Number of training images per step, on each device or in total (see batch_per).
        batch_per: device gives each device batch_size images, so more devices take larger steps; step shares batch_size
            images among them, so the number of devices makes no difference. The learning rate is never scaled.
        eval_batch_size: Number of images per batch in validation, testing and prediction.
        images: Image files, folders or globs to predict instead of the test images; for `predict` only.
        order_seed: Seed of the training images' order. By default the seed of `seed_everything`, else 0.

    Raises:
        ValueError: If a batch size is below 1; from `setup`, if the data or the split is unavailable.

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
        self.save_hyperparameters(ignore=["images"])  # images to predict do not describe the training
        self.save_hyperparameters(as_primitives(dict(self.hparams)))
        for name in ("batch_size", "eval_batch_size", "synthetic_size"):
            if self.hparams[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.hparams[name]}")
        self._augmentation = Augmentation(self.hparams["flip"], self.hparams["shift"])
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
        """Make the files available, once per machine: download them if needed and allowed."""
        if not self._needs_files_only:
            make_available(self.hparams["source"], self.hparams["data_dir"], self.hparams["download"])

    def setup(self, stage: str | None = None) -> None:
        """Load the images, split them, and compute the statistics of the training split."""
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError(
                "--trainer.overfit_batches is not supported, since it would replace the data module's sampler: use "
                "--trainer.limit_train_batches instead"
            )
        if stage == "fit":
            self._resumed_seed = None  # left over from an earlier fit; a checkpoint is loaded later
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
                    f"no validation images: expected a val_size that holds out some of {', '.join(images.classes)}, "
                    f"got {self.hparams['val_size']}"
                )
        if (size := self.hparams["train_size"]) is not None and not 1 <= size <= len(train):
            raise ValueError(f"train_size must be 1 to {len(train)}, the size of the training split, got {size}")
        self._train, self._val = train[:size], val
        self.statistics = compute_statistics(images.train_images, self.hparams["scaling"], self._train)
        self.images = images
        self.save_hyperparameters({"data_set": images.name})  # for every log of the run

    @property
    def data_set(self) -> str:
        """Name of the data set, for logs and titles."""
        return self._loaded.name

    @property
    def fingerprint(self) -> str | None:
        """A digest of images, labels and split, the same wherever the data comes from; None before `setup`."""
        digest, images = blake2b(digest_size=16), self.images
        if images is None:
            return None
        parts = (images.train_images, images.train_labels, images.test_images, images.test_labels)
        for part in (*parts, self._train, self._val):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def split_sizes(self) -> tuple[int, int]:
        """Numbers of training and validation images."""
        return len(self._train), len(self._val)

    @property
    def _loaded(self) -> ImageSet:
        if self.images is None:
            raise ValueError("there are no images yet: call prepare_data() and setup() first")
        return self.images

    def first_training_images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first images (N, 3, 32, 32), uint8, and labels (N,) of the training split, with N at most `count`."""
        images, first = self._loaded, self._train[:count]
        return images.train_images[first], images.train_labels[first]

    def train_dataloader(self) -> Loader:
        """Batches of the training split, reshuffled every epoch.

        A module with several `order_seeds` gets images (S, B, 3, 32, 32) and labels (S, B).
        """
        images = self._loaded
        executor: Any = getattr(self._module, "executor", None)
        stored = images.train_images.nbytes * (1 + self._augmentation.flip)
        device = executor.device_for(stored) if isinstance(executor, Executor) else None
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
        """Number of training images per step on each device.

        Raises:
            ValueError: If the devices can't share a step evenly.
        """
        size, ranks = int(self.hparams["batch_size"]), self.trainer.world_size if self.trainer else 1
        if self.hparams["batch_per"] == "device":
            return size
        if size % ranks:
            raise ValueError(
                f"{ranks} devices can't share a step evenly: batch_size must be a multiple of {ranks}, or batch_per "
                f"device; got {size}"
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
        """The given image files, or else the test images, in order."""
        return self._in_order(ImageFiles(self.files, self._image_shape)) if self.files else self.test_dataloader()

    @property
    def _image_shape(self) -> tuple[int, ...]:
        """Shape of the images that the module expects, (C, H, W)."""
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
        """Whether the data set is not needed, since a module with its own statistics only predicts image files.

        (Statistics from a checkpoint are loaded later.)
        """
        predicts = self.trainer is None or self.trainer.state.fn == TrainerFn.PREDICTING
        return bool(self.files) and predicts and takes_bytes(self._module)

    @property
    def _convert(self) -> Callable[[Any], Any] | None:
        """Standardizes batches for a module that does not do so itself; None for one that does."""
        return None if self.statistics is None or takes_bytes(self._module) else standardizer(self.statistics)

    def _order_seed(self) -> int:
        for seed in (self.hparams["order_seed"], self._resumed_seed, global_seed()):
            if seed is not None:
                return int(seed)
        return 0

    def on_exception(self, exception: BaseException) -> None:
        """If a GPU runs out of memory, add a note on which batch size to try."""
        if isinstance(exception, torch.OutOfMemoryError) and self.trainer is not None:
            name = "batch_size" if self.trainer.training else "eval_batch_size"
            if (size := self.hparams[name]) > 1:
                exception.add_note(f"the batch does not fit into memory: try --data.{name} {size // 2}, got {size}")

    def state_dict(self) -> dict[str, Any]:
        """The data set and the seed of its order, so that a resumed run keeps both."""
        return {"data_set": self.data_set, "order_seed": self._order_seed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the order, and check that a resumed run uses the same data set.

        Raises:
            ValueError: If it does not.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and state["data_set"] != self.data_set:
            raise ValueError(
                f"wrong data set: expected {state['data_set']!r}, on which the checkpoint was trained, "
                f"got {self.data_set!r}"
            )
        if fitting:
            self._resumed_seed = state["order_seed"]
