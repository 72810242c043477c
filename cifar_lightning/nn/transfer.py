"""Reusing the hidden layers of a trained network in another one."""

from torch import nn

from cifar_lightning.nn.blocks import Residual
from cifar_lightning.nn.mlp import DeepMLP


def copy_hidden_layers(source: DeepMLP, target: DeepMLP, layers: int | None = None) -> int:
    """Copy the normalization of the input and the first hidden layers, with the state of their batch norms.

    The networks share nothing afterwards. Dropout, which has no state, may differ, and so may the output layer.

    Args:
        source: The trained network.
        target: The one that is to reuse its layers.
        layers: Number of hidden layers; by default all of `source`.

    Returns:
        The number of hidden layers.

    Raises:
        ValueError: If the networks have fewer hidden layers, or if one of these is built in another way.

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
            f"pretrained_layers out of range: expected 1 to {most}, of {len(source.hidden)} hidden layers in the "
            f"pretrained network and {len(target.hidden)} in this one; got {count}"
        )
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {"input": (source.input, target.input)}
    pairs |= {f"hidden layer {k + 1}": (source.hidden[k], target.hidden[k]) for k in range(count)}
    for name, (theirs, ours) in pairs.items():
        expected, received = _describe(theirs), _describe(ours)
        if expected != received:
            raise ValueError(f"another {name} than the pretrained one: expected {expected}; got {received}")
    for theirs, ours in pairs.values():
        ours.load_state_dict(theirs.state_dict())
    return count


def _describe(layer: nn.Module) -> str:
    """The parts of a layer in their order, with shapes and parameters, without dropout."""
    parts = ", ".join(str(part) for name, part in layer.named_children() if name != "dropout") or "none"
    return f"x + ({parts})" if isinstance(layer, Residual) else parts
