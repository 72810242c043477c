"""Options as primitives, which YAML files hold and checkpoints give back without running foreign code."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor

#: The types of values that stay as they are.
PRIMITIVES = (str, int, float, bool, list, tuple, type(None))


def as_primitives(value: Any) -> Any:
    """Convert NumPy's numbers, arrays, tensors and paths to Python's numbers, lists and strings, in collections too.

    A loop over `np.logspace(-4, -2)` makes NumPy's numbers. They look and calculate like Python's, but a checkpoint
    that holds one can't be read with `weights_only=True`.

    Args:
        value: An option's value, or a collection of them. Whatever has no primitive form is left as it is.

    Example:
        >>> import numpy as np
        >>> as_primitives({"lr": np.float64(0.1), "betas": (np.float32(0.5), 0.9)})
        {'lr': 0.1, 'betas': (0.5, 0.9)}
    """
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {name: as_primitives(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_primitives, value))
    return value
