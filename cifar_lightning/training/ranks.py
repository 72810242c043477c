"""Communication between the ranks (processes) of a run."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import distributed


def gather_objects(trainer: Trainer, mine: Any) -> list[Any]:
    """Gather an object from each rank, in rank order. All ranks must call it."""
    if trainer.world_size == 1:
        return [mine]
    gathered = [None] * trainer.world_size
    distributed.all_gather_object(gathered, mine)
    return gathered


def is_true_anywhere(trainer: Trainer, mine: bool) -> bool:
    """Whether `mine` is true on any rank. All ranks must call it."""
    if trainer.world_size == 1:
        return mine
    flag = torch.tensor(float(mine), device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(flag, reduce_op="max"))


def draw_apart(rank: int) -> None:
    """Reseed this rank's generators, which have the same state as the first rank's, so that they differ.

    `seed_everything` gives all ranks the same seed, so they would drop the same units from different images.
    """
    if rank == 0:
        return
    seed = int(torch.randint(2**31, (rank,))[-1])  # drawn from the state, so it depends on the run's seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


def lost_rank(error: BaseException) -> str:
    """The system's message if `error` is due to the loss of another rank; "" otherwise."""
    text = str(error)
    # gloo raises plain RuntimeErrors.
    if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return text.rpartition("] ")[2].partition(". This is typically")[0].splitlines()[0]
    return ""
