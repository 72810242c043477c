"""Layers that Inductor compiles to faster code than torch's own, put into a network where its step is built."""

import copy

import torch
from torch import Tensor, nn

from cifar_lightning.nn.alpha_dropout import SELU_ALPHA, SELU_LAMBDA

PACKAGE = __name__.partition(".")[0]


class Linear(nn.Linear):
    """`nn.Linear`, whose bias is added by the kernel that comes next.

    Inductor makes a sum of product and bias, x W^T + b, addmm again, which first copies b into each row: 5 % of a step
    at batch 32. It leaves x W^T - (-b), the same to the last bit, alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        product = input @ self.weight.mT
        return product if self.bias is None else product - -self.bias


class SharedInputLinear(nn.Linear):
    """`nn.Linear` as (W x^T)^T + b: one product for all networks of a stack that share x, and dW in W's own layout.

    As x W^T, vmap would make a product for each and transposed gradients, of which the update is ten times as slow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        product = (self.weight @ input.mT).mT
        return product if self.bias is None else product + self.bias


class ELU(nn.ELU):
    """`nn.ELU`, with exp(x) - 1 in the place of expm1, which takes an eighth of the time.

    Near 0 it differs by one rounding of 1, which the other branch's values of order 1 have too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return torch.where(input > 0, input, self.alpha * (input.clamp(max=0).exp() - 1))


class SELU(nn.SELU):
    """`nn.SELU` (Klambauer et al. 2017), computed as `ELU` is."""

    def forward(self, input: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return SELU_LAMBDA * torch.where(input > 0, input, SELU_ALPHA * (input.clamp(max=0).exp() - 1))


FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, nn.ELU: ELU, nn.SELU: SELU}


def with_faster_layers(module: nn.Module, first: type[nn.Linear] | None = None) -> nn.Module:
    """A copy of the module that shares its parameters, buffers and hooks, and has faster layers where there are any.

    Other people's modules are left as they are, with all that is inside of them.

    Args:
        module: The module.
        first: The class of the first linear layer, if it has one of its own.
    """
    return _replace(module, [first] if first else [])


def _replace(module: nn.Module, first: list[type[nn.Linear]]) -> nn.Module:
    cls = type(module)
    known = cls.__module__.partition(".")[0] == PACKAGE or cls is nn.Sequential
    if not known and cls not in FASTER:
        return module
    twin = copy.copy(module)
    twin.__class__ = first.pop() if cls is nn.Linear and first else FASTER.get(cls, cls)
    twin._modules = {name: child and _replace(child, first) for name, child in module._modules.items()}
    return twin
