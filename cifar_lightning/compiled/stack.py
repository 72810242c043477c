"""Trains several networks of one shape together: each layer's matrix products become one batched product."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from cifar_lightning.compiled.code_cache import Code, CompileError, compile_once
from cifar_lightning.compiled.flat import separate_
from cifar_lightning.compiled.muon_update import MuonUpdate, StackedMuonUpdate
from cifar_lightning.compiled.stack_template import PenaltyOfEach, make_template
from cifar_lightning.compiled.step import Clip
from cifar_lightning.compiled.torch_internals import Step
from cifar_lightning.compiled.updates import Gradients, Update, make_update


class Stack:
    """M networks of one shape that take each training step together.

    Until `close` is called, their parameters, buffers and optimizer states are views of stacked tensors. Each network
    remains usable: evaluating or saving it sees its current weights. Each draws its own dropout masks.

    Args:
        networks: At least one, in training mode; alike except for the values of parameters and buffers and the dropout
            probabilities.
        optimizers: One per network, of its parameters in order, with its state restored. NAdam, Adam, AdamW, plain
            SGD or `MuonAdamW` optimizers that differ only in learning rate and weight decay step all at once.
        compiled: Whether to compile the step, for the shape of the first batch.
        clip: Maps the gradients of one network to clipped gradients; None for no clipping.
        penalties: The factors l1 and l2 of `weight_penalty` for each network; None for none.
        on_failure: Called with the error if the step can't be compiled; steps then run eagerly. If None, the error is
            raised.

    Raises:
        ValueError: If there are no networks, or their shapes differ.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        compiled: bool = False,
        clip: Clip | None = None,
        penalties: Sequence[tuple[float, float]] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
        if not networks or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "cannot stack networks: expected one or more, with parameters and buffers of the same shapes, "
                f"got {len(networks)}{' with different ones' if networks else ''}"
            )
        self._networks, self._optimizers, self._on_failure = list(networks), list(optimizers), on_failure
        module, of_each = make_template(self._networks)
        self._parameters, self._buffers = stack_module_state(self._networks)
        for index, network in enumerate(self._networks):
            for name, parameter in network.named_parameters():
                parameter.data = self._parameters[name].data[index]
            for name, buffer in network.named_buffers():
                buffer.data = self._buffers[name][index]
        made = map(_make_update, self._networks, self._optimizers)
        updates = [update for update in made if update is not None]
        alike = len(updates) == len(networks) and len({(type(update), update.constants) for update in updates}) == 1
        self._updates = updates if alike else []
        self._released: set[int] = set()
        buffers = self._buffers | of_each
        if penalties is not None and any(map(any, penalties)):
            with_l1, with_l2 = (any(factors) for factors in zip(*penalties, strict=True))
            module = PenaltyOfEach(module, with_l1, with_l2)
            factors = torch.tensor(penalties, dtype=self.parameter.dtype, device=self.parameter.device)
            buffers |= {"l1": factors[:, 0].contiguous(), "l2": factors[:, 1].contiguous()}
        # (Parameters, then the state of the updates, then buffers.)
        tensors = [*(tensor for stacked in self._stack_state() for tensor in stacked), *buffers.values()]
        step, description = self._make_step(module, list(buffers), clip)
        self.eager: Step = lambda *args: step(*args, *tensors)
        self._compiled = compile_once(step, tensors, module, description) if compiled else self.eager
        self._shape: torch.Size | None = None

    @property
    def entry(self) -> Path | None:
        """The file in the code cache that holds the step's code; None before the first step, or if it is not cached."""
        return self._compiled.entry if isinstance(self._compiled, Code) else None

    @property
    def updates_itself(self) -> bool:
        """Whether a step contains the updates; otherwise the optimizers step themselves."""
        return bool(self._updates)

    @property
    def parameter(self) -> Tensor:
        """The first parameter of all networks, (M, ...)."""
        first: Tensor = next(iter(self._parameters.values()))
        return first

    def _make_step(self, module: nn.Module, buffer_names: list[str], clip: Clip | None) -> tuple[Step, list[Any]]:
        """The step as a function of tensors alone, and a description of everything else that it depends on."""
        is_penalized = isinstance(module, PenaltyOfEach)
        inner = "model." if is_penalized else ""
        names = [f"{inner}{name}" for name in self._parameters]
        buffer_names = [name if name in ("l1", "l2") else f"{inner}{name}" for name in buffer_names]
        n = len(names)
        update = partial(self._updates[0].apply, self._updates[0].constants) if self._updates else None
        lists = len(self._updates[0].tensors) if self._updates else 1

        def loss_of(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            outputs = functional_call(module, (parameters, buffers), (x,))
            logits, penalty = outputs if is_penalized else (outputs, 0.0)
            return F.cross_entropy(logits, y) + penalty, logits

        def clip_each(*gradients: Tensor) -> tuple[Tensor, ...]:
            return tuple(clip(gradients)) if clip else gradients

        def step(x: Tensor, y: Tensor, factors: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            parameters = dict(zip(names, tensors[:n], strict=True))
            buffers = dict(zip(buffer_names, tensors[lists * n :], strict=True))
            of_batch = None if y.ndim == 1 + y.is_floating_point() else 0
            in_dims = (0, 0, of_batch, of_batch)
            losses, logits = vmap(loss_of, in_dims, randomness="different")(parameters, buffers, x, y)
            # Each network's gradient of the sum is that of its own loss: no loss depends on another network.
            gradients: Gradients = torch.autograd.grad(losses.sum(), tensors[:n])
            if clip is not None:
                gradients = vmap(clip_each)(*gradients)
            if update is None:
                return losses.detach(), logits.detach(), *gradients
            with torch.no_grad():
                update(factors, gradients, *(tensors[i * n : (i + 1) * n] for i in range(lists)))
            return losses.detach(), logits.detach()

        return step, [names, buffer_names, update, lists, clip]

    def _stack_state(self) -> list[list[Tensor]]:
        """Stack the tensors that the updates work on; each optimizer's tensors become views of them."""
        stacked = [list(self._parameters.values())]
        for lists in zip(*(update.tensors[1:] for update in self._updates), strict=True):
            stacked.append([torch.stack(tensors) for tensors in zip(*lists, strict=True)])
            for index, tensors in enumerate(lists):
                for tensor, stack in zip(tensors, stacked[-1], strict=True):
                    tensor.data = stack[index]
        return stacked

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update all networks except the released ones.

        Args:
            inputs: A batch that all networks share, (B, ...), or one each, (M, B, ...).
            targets: Labels (B,) or (M, B), or floating probabilities (B, C) or (M, B, C).

        Returns:
            The losses (M,) and the logits (M, B, C) from before the update; ignore those of released networks.
        """
        self._shape = self._shape or inputs.shape
        factors = torch.tensor(self.advance(), dtype=self.parameter.dtype, device=self.parameter.device)
        losses, logits, *gradients = self._run(inputs, targets, factors)
        self.finish(gradients)
        return losses, logits

    def advance(self) -> tuple[tuple[float, ...], ...]:
        """Count a step and return the factors of its updates, each for all networks, if they are part of the step."""
        steps = {i: update.advance() for i, update in enumerate(self._updates) if i not in self._released}
        # (Factors of 0 leave the stack's copy of a released network unchanged.)
        nothing = tuple(0.0 for _ in next(iter(steps.values()), ()))
        rows = [steps.get(index, nothing) for index in range(len(self._updates))]
        return tuple(zip(*rows, strict=True))

    def finish(self, gradients: Gradients) -> None:
        """Step the optimizers with the gradients, if the updates are not part of the step."""
        if not self._updates:
            for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
                if index in self._released:
                    continue
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.grad = gradient[index].contiguous()  # fused optimizers require it
                optimizer.step()

    def _run(self, inputs: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        if inputs.shape != self._shape:
            return self.eager(inputs, *args)
        try:
            return self._compiled(inputs, *args)
        except CompileError as error:  # nothing has run yet
            if self._on_failure is None:
                raise
            self._on_failure(error)
            self._compiled = self.eager
            return self.eager(inputs, *args)

    def release(self, index: int) -> None:
        """Stop training a network: it gets its own memory again, and its optimizer no longer steps.

        Its arithmetic continues, unused: a smaller stack would have to be recompiled.
        """
        if index not in self._released:
            self._released.add(index)
            self._separate(index)

    def close(self) -> None:
        """Give each network its own memory again. The stack must not step after this."""
        for index in set(range(len(self._networks))) - self._released:
            self._separate(index)

    def _separate(self, index: int) -> None:
        network = self._networks[index]
        separate_([*network.parameters(), *network.buffers()])
        if self._updates:
            for tensors in self._updates[index].tensors[1:]:
                separate_(tensors)


def _make_update(network: nn.Module, optimizer: Optimizer) -> StackedMuonUpdate | Update | None:
    """The update of a network's stacked tensors, or None if its optimizer must step itself."""
    if MuonUpdate.supports(optimizer):
        return StackedMuonUpdate(optimizer, list(network.parameters()))
    return make_update(optimizer)
