"""Several networks of one shape trained as one: each layer's matrix products are one batched product."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from cifar_lightning.compiled.code_cache import compile_once
from cifar_lightning.compiled.inductor_layers import SharedInputLinear, with_faster_layers
from cifar_lightning.compiled.torch_internals import Step
from cifar_lightning.compiled.updates import Gradients, make_update


class Stack:
    """M networks of one shape that make each training step together.

    Their parameters and buffers, and what their optimizers keep, become views of stacked tensors. So each goes on being
    a network of its own: whoever evaluates or saves it sees what it has learned. Dropout draws other masks for each.

    Args:
        networks: At least one; all alike but for the values of parameters and buffers, and in training mode.
        optimizers: One for each, of its parameters in their order. Those of NAdam or of plain SGD that differ in
            nothing but their rates step all at once.
        compiled: Whether by compiled code, for the shape of the first batch.

    Raises:
        ValueError: If there are none, or their shapes differ.
    """

    def __init__(self, networks: Sequence[nn.Module], optimizers: Sequence[Optimizer], compiled: bool = False) -> None:
        shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
        if not networks or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "networks that don't stack: expected one or more, with parameters and buffers of the same shapes; "
                f"received {len(networks)}{' with different ones' if networks else ''}"
            )
        self._networks, self._optimizers = list(networks), list(optimizers)
        self._parameters, self._buffers = stack_module_state(self._networks)
        for index, network in enumerate(self._networks):
            for name, parameter in network.named_parameters():
                parameter.data = self._parameters[name].data[index]
            for name, buffer in network.named_buffers():
                buffer.data = self._buffers[name][index]
        updates = [update for update in map(make_update, self._optimizers) if update is not None]
        alike = len(updates) == len(networks) and len({(type(update), update.constants) for update in updates}) == 1
        self._updates = updates if alike else []
        # (Parameters, then what the updates keep for them, then buffers.)
        tensors = [*(tensor for stacked in self._stack_state() for tensor in stacked), *self._buffers.values()]
        module = with_faster_layers(copy.deepcopy(self._networks[0]).to("meta"), first=SharedInputLinear)
        step, description = self._make_step(module)
        self._eager: Step = lambda *args: step(*args, *tensors)
        self._compiled = compile_once(step, tensors, module, description) if compiled else self._eager
        self._shape: torch.Size | None = None

    def _make_step(self, module: nn.Module) -> tuple[Step, list[Any]]:
        """The step as a function of tensors alone, and what else decides what it computes."""
        names, buffer_names = list(self._parameters), list(self._buffers)
        n = len(names)
        update = partial(self._updates[0].apply, self._updates[0].constants) if self._updates else None
        lists = len(self._updates[0].tensors) if self._updates else 1

        def loss_of(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            logits = functional_call(module, (parameters, buffers), (x,))
            return F.cross_entropy(logits, y), logits

        def step(x: Tensor, y: Tensor, factors: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            parameters = dict(zip(names, tensors[:n], strict=True))
            buffers = dict(zip(buffer_names, tensors[lists * n :], strict=True))
            of_batch = None if y.ndim == 1 else 0
            in_dims = (0, 0, of_batch, of_batch)
            losses, logits = vmap(loss_of, in_dims, randomness="different")(parameters, buffers, x, y)
            # The gradient of the sum is each one's own: no loss depends on another network.
            gradients: Gradients = torch.autograd.grad(losses.sum(), tensors[:n])
            if update is None:
                return losses.detach(), logits.detach(), *gradients
            with torch.no_grad():
                update(factors, gradients, *(tensors[i * n : (i + 1) * n] for i in range(lists)))
            return losses.detach(), logits.detach()

        return step, [names, buffer_names, update, lists]

    def _stack_state(self) -> list[list[Tensor]]:
        """The stacked tensors that the updates work on, of which those of each optimizer become views."""
        stacked = [list(self._parameters.values())]
        for lists in zip(*(update.tensors[1:] for update in self._updates), strict=True):
            stacked.append([torch.stack(tensors) for tensors in zip(*lists, strict=True)])
            for index, tensors in enumerate(lists):
                for tensor, stack in zip(tensors, stacked[-1], strict=True):
                    tensor.data = stack[index]
        return stacked

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update all networks.

        Args:
            inputs: A batch that all share, (B, ...), or one for each, (M, B, ...).
            targets: (B,), or (M, B).

        Returns:
            The losses (M,), and the logits (M, B, C) from before the update.
        """
        self._shape = self._shape or inputs.shape
        step = self._compiled if inputs.shape == self._shape else self._eager
        first = next(iter(self._parameters.values()))
        rows = [update.advance() for update in self._updates]
        factors = torch.tensor(list(zip(*rows, strict=True)), dtype=first.dtype, device=first.device)
        losses, logits, *gradients = step(inputs, targets, factors)
        if not self._updates:
            for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.grad = gradient[index].contiguous()  # as fused optimizers read it
                optimizer.step()
        return losses, logits
