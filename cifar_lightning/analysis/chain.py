"""A network as a sequence of layers, as far as the two certainly compute the same."""

from collections.abc import Callable

from torch import Tensor, nn

from cifar_lightning.analysis.probe import drops, is_foreign
from cifar_lightning.compiled.hooks import has_hooks


def split_at_first_dropout(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Split `module` before the first layer that drops or may drop something.

    Applied in order, the two parts compute the same as `module`. The first part is the identity where that can't be
    guaranteed: for modules that are neither torch's nor ours, that have hooks, or whose forward pass was replaced.
    """
    layers = _flatten(module)
    first = next((i for i, layer in enumerate(layers) if any(map(_may_drop, layer.modules()))), len(layers))
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def _may_drop(module: nn.Module) -> bool:
    return is_foreign(module) or drops(module)


def _flatten(module: nn.Module) -> list[nn.Module]:
    """The layers that `module` applies in order; only `module` itself where that is uncertain."""
    if is_foreign(module) or has_hooks(module) or type(module).__call__ is not nn.Module.__call__:
        return [module]
    as_sequential = getattr(type(module), "as_sequential", None)  # the class is ours: `is_foreign` has checked that
    if as_sequential is not None and "as_sequential" not in vars(module):
        module = as_sequential(module)
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flatten(child)]
