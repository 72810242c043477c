"""What the processes of one training, its ranks, must know of each other."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import distributed


def gather_objects(trainer: Trainer, mine: Any) -> list[Any]:
    """What each rank hands over, by rank. All ranks must call it."""
    if trainer.world_size == 1:
        return [mine]
    gathered = [None] * trainer.world_size
    distributed.all_gather_object(gathered, mine)
    return gathered


def is_true_anywhere(trainer: Trainer, mine: bool) -> bool:
    """Whether something is true on any rank. All ranks must call it."""
    if trainer.world_size == 1:
        return mine
    flag = torch.tensor(float(mine), device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(flag, reduce_op="max"))


def draw_apart(rank: int) -> None:
    """Let this rank's generators draw other numbers than the first one's, of whose state they are now.

    `seed_everything` gives all ranks the same seed, so they would drop the same units from different images.
    """
    if rank == 0:
        return
    seed = int(torch.randint(2**31, (rank,))[-1])  # of the state, so that another seed is another one on each rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


def lost_rank(error: BaseException) -> str:
    """What the system says of the loss of another rank, if `error` is due to it; "" if it is not."""
    text = str(error)
    # gloo raises plain RuntimeErrors.
    if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return text.rpartition("] ")[2].partition(". This is typically")[0].splitlines()[0]
    return ""
