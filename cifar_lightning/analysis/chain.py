"""A network as a row of layers, as far as that is certain to be the same function."""

from collections.abc import Callable

from torch import Tensor, nn

from cifar_lightning.analysis.probe import drops, is_foreign
from cifar_lightning.compiled.hooks import has_hooks


def split_at_first_dropout(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Split `module` into the layers before the first that drops or may drop something, and the rest.

    The two in a row are the same function as `module`. The first is the identity where that can't be told: for a
    module of neither torch's nor ours, one with hooks, and one whose forward pass is not its class's.
    """
    layers = _flatten(module)
    first = next((i for i, layer in enumerate(layers) if any(map(_may_drop, layer.modules()))), len(layers))
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def _may_drop(module: nn.Module) -> bool:
    return is_foreign(module) or drops(module)


def _flatten(module: nn.Module) -> list[nn.Module]:
    """The layers that a call of `module` runs one after another; `module` itself where that is not certain."""
    if is_foreign(module) or has_hooks(module) or type(module).__call__ is not nn.Module.__call__:
        return [module]
    as_sequential = getattr(type(module), "as_sequential", None)  # of a class of ours, as `is_foreign` made sure
    if as_sequential is not None and "as_sequential" not in vars(module):
        module = as_sequential(module)
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flatten(child)]
