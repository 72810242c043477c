"""Reusing the hidden layers of a trained network in another one."""

from torch import nn

from cifar_lightning.nn.blocks import Residual
from cifar_lightning.nn.mlp import DeepMLP


def copy_hidden_layers(source: DeepMLP, target: DeepMLP, layers: int | None = None) -> int:
    """Copy the input normalization and the first hidden layers, including batch norm statistics, to another network.

    The networks share no tensors afterwards. Their dropout and output layers may differ.

    Args:
        source: The trained network.
        target: The network that reuses its layers.
        layers: Number of hidden layers to copy; all of `source` by default.

    Returns:
        The number of hidden layers copied.

    Raises:
        ValueError: If either network has fewer hidden layers, or if a pair of layers is built differently.

    Example:
        >>> from cifar_lightning import DeepMLP, copy_hidden_layers
        >>> trained, new = (DeepMLP(num_classes=n, hidden_sizes="4x16") for n in (8, 2))
        >>> copy_hidden_layers(trained, new, layers=3)
        3
    """
    count = len(source.hidden) if layers is None else layers
    most = min(len(source.hidden), len(target.hidden))
    if not 1 <= count <= most:
        raise ValueError(
            f"pretrained_layers must be 1 to {most}, with {len(source.hidden)} hidden layers in the "
            f"pretrained network and {len(target.hidden)} in this one; got {count}"
        )
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {"input": (source.input, target.input)}
    pairs |= {f"hidden layer {k + 1}": (source.hidden[k], target.hidden[k]) for k in range(count)}
    for name, (theirs, ours) in pairs.items():
        expected, received = _describe(theirs), _describe(ours)
        if expected != received:
            raise ValueError(f"{name} differs from the pretrained one: expected {expected}; got {received}")
    for theirs, ours in pairs.values():
        ours.load_state_dict(theirs.state_dict())
    return count


def _describe(layer: nn.Module) -> str:
    """The parts of a layer in order, with shapes and parameters, leaving out dropout."""
    parts = ", ".join(str(part) for name, part in layer.named_children() if name != "dropout") or "none"
    return f"x + ({parts})" if isinstance(layer, Residual) else parts
