"""How long a training is, in optimizer steps."""

from math import ceil
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from torch.utils.data import DistributedSampler


def count_optimizer_steps(trainer: Trainer) -> int | None:
    """Number of optimizer steps of a whole training, or None if it can't be known.

    `trainer.estimated_stepping_batches` would set up the data loader before a resume restores it, which then goes on
    with wrong batches in silence.
    """
    limits = [trainer.max_steps] if trainer.max_steps != -1 else []
    loader: Any = trainer.fit_loop._data_source.dataloader()
    batches = sized_len(loader)
    if batches is not None and trainer.max_epochs not in (None, -1):
        connector = trainer._accelerator_connector
        sharded = not connector.use_distributed_sampler or isinstance(
            getattr(loader, "sampler", None), DistributedSampler
        )
        if connector.is_distributed and not sharded:
            batches = ceil(batches / trainer.world_size)
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        limits.append(trainer.max_epochs * ceil(batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)
