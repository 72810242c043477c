"""Saves and restores all random generators of a process."""

import random
from typing import Any

import numpy as np
import torch


def collect_generators() -> dict[str, Any]:
    """Collect the states as primitives and tensors, which load with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this rank's device
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Restore states that `collect_generators` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for generator in state["cuda"]:  # none if the checkpoint was written without a GPU
            torch.cuda.set_rng_state(generator.cpu())
