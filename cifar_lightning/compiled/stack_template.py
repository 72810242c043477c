"""A module that stands for several networks of one shape: given the tensors of one, it computes its output."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cifar_lightning.compiled.inductor_layers import SharedInputLinear, with_faster_layers
from cifar_lightning.nn.alpha_dropout import ALPHA_PRIME, AlphaDropout, affine_correction

DROPOUTS = (nn.Dropout, AlphaDropout)


class DropoutOfEach(nn.Module):
    """Dropout or alpha dropout with the probability as a buffer, so each network of a stack can have its own.

    Args:
        is_alpha: Whether it is alpha dropout.
    """

    p: Tensor

    def __init__(self, is_alpha: bool) -> None:
        super().__init__()
        self.is_alpha = is_alpha
        self.register_buffer("p", torch.zeros((), device="meta"))

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        if not self.training:
            return input
        dropped = torch.rand_like(input, dtype=torch.float32) < self.p
        if not self.is_alpha:
            return torch.where(dropped, 0.0, input / (1 - self.p).to(input.dtype))
        a, b = (factor.to(input.dtype) for factor in affine_correction(self.p))
        return torch.where(dropped, a * ALPHA_PRIME + b, a * input + b)


class PenaltyOfEach(nn.Module):
    """A network with a weight penalty, whose factors are buffers so that each network of a stack can have its own.

    Args:
        model: The network.
        with_l1: Whether any network of the stack has an l1 penalty.
        with_l2: Whether any has an l2 penalty.
    """

    l1: Tensor
    l2: Tensor

    def __init__(self, model: nn.Module, with_l1: bool, with_l2: bool) -> None:
        super().__init__()
        self.model, self.with_l1, self.with_l2 = model, with_l1, with_l2
        for name in ("l1", "l2"):
            self.register_buffer(name, torch.zeros((), device="meta"))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | float]:
        """Map inputs (B, ...) to logits (B, C) and the penalty ()."""
        penalty: Tensor | float = 0.0
        for layer in (layer for layer in self.model.modules() if isinstance(layer, nn.Linear)):
            if self.with_l1:
                penalty = penalty + self.l1 * layer.weight.abs().sum()
            if self.with_l2:
                penalty = penalty + self.l2 * layer.weight.square().sum()
        return self.model(input), penalty


def make_template(networks: Sequence[nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make a network on the meta device that stands for each of several, and the extra values that it needs for each.

    Args:
        networks: Networks that are alike except for the values of parameters and buffers and the dropout probabilities.

    Returns:
        The network, and the stacked values (M,), by name, of buffers that the networks themselves do not have.
    """
    module = with_faster_layers(copy.deepcopy(networks[0]).to("meta"), first=SharedInputLinear)
    first = next(networks[0].parameters())
    values: dict[str, Tensor] = {}
    for path, layer in list(module.named_modules()):
        if not isinstance(layer, DROPOUTS):
            continue
        rates = [network.get_submodule(path).p for network in networks]
        if len(set(rates)) > 1:
            twin = DropoutOfEach(isinstance(layer, AlphaDropout)).train(layer.training)
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, twin)
            values[f"{path}.p"] = torch.tensor(rates, dtype=torch.float32, device=first.device)
    return module, values


class StackedForward:
    """Computes the logits of M networks of one shape at once. Gradients reach the networks' own parameters.

    Args:
        networks: As for `make_template`. Running statistics are updated in their own buffers.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = list(networks)
        self._template, self._values = make_template(networks)

    def __call__(self, inputs: Tensor, is_shared: bool) -> Tensor:
        """Map inputs, (B, ...) if shared or (M, B, ...) otherwise, to logits (M, B, C)."""
        self._template.train(self._networks[0].training)
        parameters = _stack([dict(network.named_parameters()) for network in self._networks])
        own = [dict(network.named_buffers()) for network in self._networks]
        buffers = _stack(own)

        def call(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._template, {**parameters, **buffers}, (x,))
            return logits

        in_dims = (0, 0, None if is_shared else 0)
        logits: Tensor = vmap(call, in_dims, randomness="different")(parameters, buffers | self._values, inputs)
        with torch.no_grad():
            for index, kept in enumerate(own):
                for name, buffer in kept.items():
                    buffer.copy_(buffers[name][index])
        return logits


def _stack(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}
