"""Replacements for torch's layers that Inductor compiles to faster code; they are swapped in when a step is built."""

import copy

import torch
from torch import Tensor, nn

from cifar_lightning.nn.alpha_dropout import SELU_ALPHA, SELU_LAMBDA

PACKAGE = __name__.partition(".")[0]


class Linear(nn.Linear):
    """`nn.Linear` whose bias is added by the next kernel.

    Inductor turns x W^T + b back into addmm, which first copies b into each row: 5 % of a step at batch 32. It leaves
    x W^T - (-b) alone, which is the same to the last bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        product = input @ self.weight.mT
        return product if self.bias is None else product - -self.bias


class SharedInputLinear(nn.Linear):
    """`nn.Linear` as (W x^T)^T + b: one product for all networks of a stack that share x, and dW in W's own layout.

    For x W^T, vmap would compute a product per network and transposed gradients, whose update is ten times as slow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        product = (self.weight @ input.mT).mT
        return product if self.bias is None else product + self.bias


class ELU(nn.ELU):
    """`nn.ELU` with exp(x) - 1 instead of expm1, which takes an eighth of the time.

    Near 0 it differs by one rounding of 1, the precision that activations of order 1 have anyway.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        return torch.where(input > 0, input, self.alpha * (input.clamp(max=0).exp() - 1))


class SELU(nn.SELU):
    """`nn.SELU` (Klambauer et al. 2017), computed like `ELU`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        return SELU_LAMBDA * torch.where(input > 0, input, SELU_ALPHA * (input.clamp(max=0).exp() - 1))


FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, nn.ELU: ELU, nn.SELU: SELU}


def with_faster_layers(module: nn.Module, first: type[nn.Linear] | None = None) -> nn.Module:
    """A copy of the module with faster layers, sharing its parameters, buffers and hooks.

    Modules from other packages are left unchanged, including everything inside them.

    Args:
        module: The module.
        first: A special class for the first linear layer, if any.
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
