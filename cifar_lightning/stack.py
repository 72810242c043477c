"""Several networks of one shape trained as one: each layer's matrix products are one batched product."""

from collections.abc import Callable, Sequence

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cifar_lightning.compiled_step import compile_once


class Stack:
    """M networks of one shape, whose gradients are computed together.

    Their parameters and buffers become views of the stacked ones. So each goes on being a network of its own: its
    optimizer steps it, and whoever evaluates or saves it sees what it has learned. Dropout draws other masks for each.

    Args:
        networks: At least one; all alike but for the values of parameters and buffers, and in training mode.
        compiled: Whether by compiled code, for the shape of the first batch.

    Raises:
        ValueError: If there are none, or their shapes differ.
    """

    def __init__(self, networks: Sequence[nn.Module], compiled: bool = False) -> None:
        shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
        if not networks or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "networks that don't stack: expected one or more, with parameters and buffers of the same shapes; "
                f"received {len(networks)}{' with different ones' if networks else ''}"
            )
        self._networks = list(networks)
        self._parameters, self._buffers = stack_module_state(self._networks)
        for index, network in enumerate(self._networks):
            for name, parameter in network.named_parameters():
                parameter.data = self._parameters[name].data[index]
            for name, buffer in network.named_buffers():
                buffer.data = self._buffers[name][index]
        self._eager = self._make_gradients()
        self._compiled = compile_once(self._eager) if compiled else self._eager
        self._shape: torch.Size | None = None

    def _make_gradients(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
        template, parameters, buffers = self._networks[0], self._parameters, self._buffers

        def loss_of(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            logits = functional_call(template, (parameters, buffers), (x,))
            return F.cross_entropy(logits, y), logits

        def gradients_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            of_batch = None if y.ndim == 1 else 0
            in_dims = (0, 0, of_batch, of_batch)
            losses, logits = vmap(loss_of, in_dims, randomness="different")(parameters, buffers, x, y)
            # The gradient of the sum is each one's own: no loss depends on another network.
            gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
            return losses.detach(), logits.detach(), gradients

        return gradients_of

    def compute_gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Put each network's gradients into its parameters' `grad`.

        Args:
            inputs: A batch that all share, (B, ...), or one for each, (M, B, ...).
            targets: (B,), or (M, B).

        Returns:
            The losses (M,), and the logits (M, B, C).
        """
        first, self._shape = self._shape is None, self._shape or inputs.shape
        gradients_of = self._compiled if inputs.shape == self._shape else self._eager
        with torch._dynamo.config.patch(trace_autograd_ops=first):
            losses, logits, gradients = gradients_of(inputs, targets)
        for index, network in enumerate(self._networks):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient[index]
        return losses, logits
