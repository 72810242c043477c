"""A training step as compiled code: loss, gradients and update in one graph.

A 20 x 100 network is so small that everything but its matrix products dominates a step of PyTorch: the dispatcher, the
autograd engine, forty parameters updated one by one.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.compiled.code_cache import Step, compile_once
from cifar_lightning.compiled.inductor_layers import with_faster_layers
from cifar_lightning.compiled.updates import Gradients, make_update


class CompiledStep:
    """One step of training, to be called as `loss, logits = step(inputs, targets)`.

    It computes what `F.cross_entropy(model(inputs), targets)`, `backward()` and `optimizer.step()` would, from the
    same random numbers, to within rounding. The step of NAdam and of plain SGD is part of the graph, and leaves the
    parameters' `grad` as it was: so each gradient is used while it is in the processor's cache. Compiled code knows one
    batch size; others, such as an epoch's short last batch, run eagerly. The model has to be in training mode, and the
    optimizer to have the state and the schedule that it shall go on with. From then on, both must keep their tensors: a
    module's `load_state_dict` copies into them, an optimizer's puts others in their place.

    Args:
        model: Maps inputs (B, ...) to logits (B, C).
        optimizer: Any optimizer of the model's parameters.
        clip: Maps the gradients to those that the optimizer shall see; None for no clipping.
        batch_size: The batch size to compile for; None for that of the first batch.
        penalty: Computes what is added to the cross-entropy, from the model's parameters; None for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        clip: Callable[[Gradients], Gradients] | None = None,
        batch_size: int | None = None,
        penalty: Callable[[], Tensor | float] | None = None,
    ) -> None:
        self._parameters = parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._optimizer, self._update = optimizer, make_update(optimizer)
        # (Not the optimizer itself: what the step can read is what its compiled code is found by.)
        update = partial(self._update.apply, self._update.constants) if self._update else None
        tensors = self._update.tensors if self._update else []

        def make_step(model: nn.Module) -> Step:
            def step(inputs: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
                logits = model(inputs)
                loss = F.cross_entropy(logits, targets)
                if penalty is not None:
                    loss = loss + penalty()
                gradients: Gradients = torch.autograd.grad(loss, parameters)
                if clip is not None:
                    gradients = clip(gradients)
                if update is None:
                    return loss.detach(), logits.detach(), *gradients
                with torch.no_grad():
                    update(factors, gradients, *tensors)
                return loss.detach(), logits.detach()

            return step

        # A copy with other layers computes the same to within rounding: an epoch's short last batch takes the original.
        self._eager, self._compiled = make_step(model), compile_once(make_step(with_faster_layers(model)))
        self._batch_size = batch_size

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters; return the loss (), and the logits (B, C) from before the update."""
        self._batch_size = self._batch_size or len(inputs)
        step = self._compiled if len(inputs) == self._batch_size else self._eager
        factors = self._update.advance() if self._update else ()
        first = self._parameters[0]
        loss, logits, *gradients = step(inputs, targets, torch.tensor(factors, dtype=first.dtype, device=first.device))
        if self._update is None:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient.contiguous()  # as fused optimizers read it
            self._optimizer.step()
        return loss, logits


def has_compiler() -> bool:
    """Whether there is the C++ compiler that `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
