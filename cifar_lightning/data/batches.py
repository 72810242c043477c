"""Splits, batch order, and a loader that gets a whole batch with one indexing operation."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cifar_lightning.errors import unknown_name

#: Which images are held out for validation; stratified is random, with each class in proportion.
ValSplit = Literal["first", "last", "random", "stratified"]

#: Number of images converted to floats at a time: 3 MB, still in the cache when their step runs.
CONVERTED = 256


def split_indices(labels: Tensor, val_split: ValSplit, val_size: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels`, (N,), into training and validation indices, both ascending.

    Args:
        labels: A label for each image; only their number matters unless the split is stratified.
        val_split: How the validation images are chosen.
        val_size: Number of validation images, or their fraction of N as a float below 1.
        seed: Seed of the random splits.

    Raises:
        ValueError: If either part would be empty, or if the split is unknown.
    """
    n = len(labels)
    count = round(val_size * n) if isinstance(val_size, float) and val_size < 1 else int(val_size)
    if not 0 < count < n or (count != val_size and isinstance(val_size, float) and val_size >= 1):
        raise ValueError(f"val_size must be 1 to {n - 1} images or a fraction below 1, got {val_size}")
    generator = Generator().manual_seed(seed)
    match val_split:
        case "first":
            val = torch.arange(count)
        case "last":
            val = torch.arange(n - count, n)
        case "random":
            val = torch.randperm(n, generator=generator)[:count]
        case "stratified":
            val = _stratified(labels, count, generator)
        case _:
            raise unknown_name("val_split", val_split, get_args(ValSplit))
    held_out = torch.zeros(n, dtype=torch.bool)
    held_out[val] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def _stratified(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """`count` indices with each class in proportion, to within one image."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Every (N/count)-th image of a list sorted by class takes each class in proportion.
    picks = torch.arange(count, dtype=torch.float64).add_(0.5).mul_(len(labels) / count).long()
    return by_class[picks]


class Batches(NamedTuple):
    """Several consecutive batches as two tensors, ready to be moved to a device."""

    images: Tensor  # (..., N, 3, 32, 32), uint8
    labels: Tensor  # (..., N), int64
    size: int  # of each batch; the last may be smaller

    def split(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, with images as float32: compiled code would convert bytes at every use."""
        count, dim = self.size * max(1, CONVERTED // self.size), self.labels.ndim - 1
        for images, labels in zip(self.images.split(count, dim), self.labels.split(count, dim), strict=True):
            yield from zip(as_floats(images).split(self.size, dim), labels.split(self.size, dim), strict=True)


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32; return others unchanged."""
    return images.float() if images.dtype == torch.uint8 else images


class InMemoryImages(Dataset[tuple[Tensor, Tensor]]):
    """The images and labels of a split, indexed by position: one example, or a whole batch at once.

    Args:
        images: (N, 3, 32, 32), uint8.
        labels: (N,), int64.
        indices: (M,), the split's images in order; all by default. The images are not copied.
        device: Device to which all images and labels are moved at the first batch, so that batches are gathered there;
            with variants, those keep the images. By default they stay where they are.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, indices: Tensor | None = None, device: torch.device | None = None
    ) -> None:
        self.images, self.labels, self.device = images, labels, device
        self.indices = torch.arange(len(labels)) if indices is None else indices
        #: If set, maps indices of images, (...), to augmented images (..., 3, 32, 32) on the indices' device.
        self.variants: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """The examples at some positions of the split.

        An int returns an image (3, 32, 32) and its label (). A tensor (B,), a slice or a list of B ints returns images
        (B, 3, 32, 32) and labels (B,), and a tensor (S, B) returns images (S, B, 3, 32, 32) and labels (S, B). A list
        of tensors, one per batch, returns `Batches`.

        Raises:
            IndexError: If the split has no such position.
        """
        if isinstance(index, list) and index and isinstance(index[0], Tensor) and index[0].ndim:
            images, labels = self[torch.cat(index, -1)]
            return Batches(images, labels, index[0].shape[-1])
        if self.device is not None:  # only now, since some loaders are only made to find their length
            self.labels = self.labels.to(self.device)
            self.images = self.images if self.variants else self.images.to(self.device)
        chosen = to_device(self.indices[index], self.labels.device)
        flat = chosen.flatten()
        # (`index_select` copies whole images; indexing would copy single bytes.)
        images = self.variants(chosen) if self.variants else self.images.index_select(0, flat)
        labels = self.labels.index_select(0, flat)
        return images.view(*chosen.shape, *self.images.shape[1:]), labels.view(chosen.shape)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A list of examples, for a `DataLoader` that collates batches itself."""
        return list(zip(*self[indices], strict=True))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device; to a GPU from pinned memory, so that nothing waits for the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def epoch_generator(seed: int, epoch: int, purpose: Literal["order", "variants"]) -> Generator:
    """A random generator that is determined by seed, epoch and purpose."""
    # A CPU generator takes 32 bits; an odd factor keeps (seed, epoch) apart from (seed + 1, epoch - 1).
    number = (seed * 0x9E3779B1 + epoch) % 2**32
    return Generator().manual_seed(number if purpose == "order" else number ^ 0x85EBCA6B)


class BatchOrder(DistributedSampler[Tensor]):
    """The batches of an epoch, each a tensor of positions: a function of seed and epoch alone.

    It can start in the middle of an epoch, and gives each rank its own part. When shuffling, all ranks get the same
    number of images, a few of them twice if necessary, as DDP requires; otherwise each image occurs exactly once.
    (It is a `DistributedSampler` so that Lightning does not replace it.)

    Args:
        data: The data set; only its length matters.
        batch_size: Number of images per batch and rank. The last batch may be smaller. When shuffling, a single
            left-over image joins the batch before it: batch normalization can't be trained on one image.
        shuffle: Whether to reshuffle every epoch.
        seed: Seed of the orders.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self, data: Sized, batch_size: int, shuffle: bool, seed: int, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(range(len(data)), num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.size, self.batch_size = len(data), batch_size
        self.position = 0  # number of batches of this epoch yielded so far
        self._start = 0
        #: If set, returns how many batches to yield next; several are yielded as a list.
        self.batches_at_once: Callable[[], int] | None = None

    def __len__(self) -> int:
        share = self.num_samples if self.shuffle else len(range(self.rank, self.size, self.num_replicas))
        return -(-share // self.batch_size) - self._leaves_one(share)

    def _leaves_one(self, share: int) -> bool:
        """Whether, when shuffling, a rank's `share` of images would leave a last batch of a single image."""
        return self.shuffle and share > self.batch_size and share % self.batch_size == 1

    def __iter__(self) -> Iterator[Tensor | list[Tensor]]:  # type: ignore[override]
        start, self._start = self._start, 0
        batches = self._batches()
        while start < len(batches):
            count = self.batches_at_once() if self.batches_at_once else 1
            stop = min(start + count, len(batches))
            if stop - start > 1 and batches[stop - 1].shape[-1] > batches[start].shape[-1]:
                stop -= 1  # a last batch with one extra image comes alone: `Batches` has only one size
            self.position = stop
            yield batches[start:stop] if stop - start > 1 else batches[start]
            start = stop

    def _batches(self) -> list[Tensor]:
        share = self._order()[..., self.rank :: self.num_replicas]
        batches = list(share.split(self.batch_size, -1))
        if self._leaves_one(share.shape[-1]):
            batches[-2:] = [torch.cat(batches[-2:], -1)]
        return batches

    def _order(self) -> Tensor:
        return self._shuffled(self.seed) if self.shuffle else torch.arange(self.size)

    @property
    def seeds(self) -> list[int]:
        """The seed of each row of positions in a batch."""
        return [self.seed]

    def _shuffled(self, seed: int) -> Tensor:
        order = torch.randperm(self.size, generator=epoch_generator(seed, self.epoch, "order"))
        return order[torch.arange(self.total_size) % self.size]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; if it is the current one, keep the position."""
        if epoch != self.epoch:
            self.position = self._start = 0
        super().set_epoch(epoch)

    @property
    def step_size(self) -> int:
        """Number of images in a step over all ranks."""
        return self.batch_size * self.num_replicas

    def state_dict(self) -> dict[str, int]:
        """The current seed, epoch and position."""
        state = {"seed": self.seed, "epoch": self.epoch, "position": self.position}
        return state | {"step_size": self.step_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`. The number of ranks may differ as long as steps have the same size."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.position = self._start = state["position"]


class JoinedOrder(BatchOrder):
    """Batches shuffled in several orders at once: (S, B) positions, a row for each of S seeds.

    Args:
        data: The data set; only its length matters.
        batch_size: Number of images per batch and row, as in `BatchOrder`.
        seeds: Seeds of the orders.
    """

    def __init__(self, data: Sized, batch_size: int, seeds: Sequence[int]) -> None:
        super().__init__(data, batch_size, True, seeds[0])
        self._seeds = list(seeds)

    @property
    def seeds(self) -> list[int]:
        """The seed of each row of positions in a batch."""
        return self._seeds

    def _order(self) -> Tensor:
        return torch.stack([self._shuffled(seed) for seed in self.seeds])


class ResumableLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A loader that can be saved and resumed in the middle of an epoch."""

    sampler: BatchOrder

    def state_dict(self) -> dict[str, int]:
        """The position in the order, for Lightning's checkpoint."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`."""
        self.sampler.load_state_dict(state)


def make_loader(
    data: Dataset[Any],
    order: BatchOrder,
    cls: type[DataLoader[Any]] = DataLoader,
    convert: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """Make a loader of class `cls` for `data` in the given order. `convert` maps each batch, if given."""
    # A separate generator: DataLoader draws a number at each start, which would otherwise advance the global one and
    # change the dropout masks of a resumed run.
    return cls(data, batch_size=None, sampler=order, collate_fn=convert, generator=Generator())
