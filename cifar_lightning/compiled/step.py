"""A compiled training step: loss, gradients and update in one graph.

A 20 x 100 network is so small that overhead dominates an eager step rather than matrix products: the dispatcher, the
autograd engine, forty parameters updated one by one.
"""

import copy
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from cifar_lightning.compiled.code_cache import Code, CompileError, compile_once
from cifar_lightning.compiled.flat import Layout, find_split, flatten_, separate_
from cifar_lightning.compiled.inductor_layers import with_faster_layers
from cifar_lightning.compiled.muon_update import MuonUpdate
from cifar_lightning.compiled.torch_internals import Step
from cifar_lightning.compiled.updates import Gradients, make_update

Clip = Callable[[Gradients], Gradients]
Penalty = Callable[[nn.Module], Tensor]


class CompiledStep:
    """A compiled training step. Call it as `loss, logits = step(inputs, targets)`.

    It computes the same as `F.cross_entropy(model(inputs), targets)`, `backward()` and `optimizer.step()`, from the
    same random numbers, up to rounding; targets are labels (B,) or probabilities (B, C). The updates of NAdam, Adam,
    AdamW, `MuonAdamW` and plain SGD are part of the graph, which leaves the parameters' `grad` alone. The code is
    compiled for one batch size; other batches, such as a short last one, run eagerly. Put the model in training mode
    and restore the optimizer's state before creating the step. Neither may swap its tensors afterwards: a module's
    `load_state_dict` copies into them, but an optimizer's replaces them.

    Until `close` is called, the parameters and Adam's running averages are views of flat tensors, so that one kernel
    updates them all.

    Args:
        model: Maps inputs (B, ...) to logits (B, C).
        optimizer: Any optimizer of all the model's parameters.
        clip: Maps the gradients to clipped gradients; None for no clipping.
        batch_size: The batch size to compile for; None for that of the first batch.
        penalty: Maps the model to a term added to the cross-entropy; None for none.
        on_failure: Called with the error if the step can't be compiled; steps then run eagerly. If None, the error is
            raised.
        autocast: The lower precision for `torch.autocast`; None for no autocast. Biases are added in the parameters'
            own precision.

    Raises:
        ValueError: If the parameters are not exactly the optimizer's, are frozen or tied, differ in dtype or
            device, or share memory.

    Example:
        >>> import torch
        >>> from cifar_lightning import CompiledStep, DeepMLP
        >>> model = DeepMLP(in_features=12, num_classes=3, hidden_sizes=[8])
        >>> step = CompiledStep(model, torch.optim.NAdam(model.parameters()))
        >>> loss, logits = step(torch.randn(5, 12), torch.arange(5) % 3)  # doctest: +SKIP
        >>> step.close()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        clip: Clip | None = None,
        batch_size: int | None = None,
        penalty: Penalty | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        watched = _Penalized(model, penalty, autocast)
        if misfit := find_misfit(watched, optimizer):
            raise ValueError(
                "cannot compile a step of this model: expected an optimizer of exactly its parameters, none of them "
                f"frozen, tied or sharing memory, all of one dtype and device; got {misfit}"
            )
        names = {id(parameter): name for name, parameter in watched.named_parameters()}
        self._optimizer = optimizer
        self._update = MuonUpdate(optimizer) if MuonUpdate.supports(optimizer) else make_update(optimizer)
        self._parameters = parameters = _parameters_of(optimizer)
        self._layout = Layout.of(parameters)
        self._kept = self._update.tensors if self._update else [parameters]  # each list in the parameters' order
        self._flat = [flatten_(Layout.of(tensors), tensors) for tensors in self._kept]
        self._flat[0].requires_grad_()
        self.eager = self._make_eager(watched, clip)
        self._compiled = self._make_compiled(watched, [names[id(parameter)] for parameter in parameters], clip)
        self._batch_size, self._on_failure = batch_size, on_failure
        self._kind: list[tuple[object, ...]] = []

    @property
    def updates_itself(self) -> bool:
        """Whether the update is part of the step; otherwise the step calls the optimizer."""
        return self._update is not None

    @property
    def is_compiled(self) -> bool:
        """Whether the step runs compiled code; False if torch could not compile it."""
        return self._compiled is not self.eager

    @property
    def entry(self) -> Path | None:
        """The file in the code cache that holds the step's code; None before the first step, or if it is not cached."""
        return self._compiled.entry if isinstance(self._compiled, Code) else None

    @property
    def compiled(self) -> Step:
        """The same function as `eager`; its first call compiles it for that batch size."""
        return self._compiled

    @property
    def parameter(self) -> Tensor:
        """All parameters, (N,)."""
        return self._flat[0]

    def _make_eager(self, model: "_Penalized", clip: Clip | None) -> Step:
        def step(inputs: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
            with _without_autocast(self.parameter):
                return compute(inputs, targets, factors)

        def compute(inputs: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
            logits, penalty = model(inputs)
            loss = F.cross_entropy(logits, targets) + penalty
            gradient = self._layout.join(torch.autograd.grad(loss, self._parameters))
            (gradient,) = clip([gradient]) if clip else [gradient]
            gradient, factors = _only_if_finite(loss, gradient, factors)
            if self._update is None:
                return loss.detach(), logits.detach(), gradient
            with torch.no_grad():
                self._update.apply(self._update.constants, factors, [gradient], *([flat] for flat in self._flat))
            return loss.detach(), logits.detach()

        return step

    def _make_compiled(self, model: "_Penalized", names: list[str], clip: Clip | None) -> Step:
        # Every tensor is an argument, so the code works for any network with these shapes.
        module = copy.deepcopy(with_faster_layers(model)).to("meta")
        buffers = {name: (buffer, buffer.shape) for name, buffer in model.named_buffers()}
        # Dynamo would treat a 0-dimensional float64 tensor as a number, and its value as a constant.
        arguments = [buffer.view(1) if buffer.ndim == 0 else buffer for buffer, _ in buffers.values()]
        layout, count, shapes = self._layout, len(self._flat), {name: shape for name, (_, shape) in buffers.items()}
        update = partial(self._update.apply, self._update.constants) if self._update else None

        def step(inputs: Tensor, targets: Tensor, factors: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            flat = tensors[0]
            values = dict(zip(names, layout.views(flat), strict=True))
            kept = zip(shapes.items(), tensors[count:], strict=True)
            values |= {name: tensor.view(shape) if not shape else tensor for (name, shape), tensor in kept}
            logits, penalty = functional_call(module, values, (inputs,))
            loss = F.cross_entropy(logits, targets) + penalty
            gradients: Gradients = torch.autograd.grad(loss, [flat])
            if clip is not None:
                gradients = clip(gradients)
            gradient, factors = _only_if_finite(loss, *gradients, factors)
            if update is None:
                return loss.detach(), logits.detach(), gradient
            with torch.no_grad():
                update(factors, [gradient], *([tensor] for tensor in tensors[:count]))
            return loss.detach(), logits.detach()

        description = [names, layout.shapes, count, shapes, clip, update]
        return compile_once(step, [*self._flat, *arguments], module, description)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters; return the loss (), and the logits (B, C) from before the update."""
        self._batch_size = self._batch_size or len(inputs)
        factors = torch.tensor(self.advance(), dtype=self.parameter.dtype, device=self.parameter.device)
        if len(inputs) == self._batch_size and self._is_as_compiled(inputs, targets):
            loss, logits, *gradients = self._run_compiled(inputs, targets, factors)
        else:
            loss, logits, *gradients = self.eager(inputs, targets, factors)
        self.finish(gradients)
        return loss, logits

    def advance(self) -> tuple[float, ...]:
        """Count a step and return the factors of its update, if the update is part of the step."""
        return self._update.advance() if self._update else ()

    def finish(self, gradients: Gradients) -> None:
        """Step the optimizer with the gradients, if the update is not part of the step."""
        if self._update is None:
            (gradient,) = gradients
            for parameter, view in zip(self._parameters, self._layout.views(gradient), strict=True):
                parameter.grad = view
            self._optimizer.step()

    def _is_as_compiled(self, *batch: Tensor) -> bool:
        """Whether a batch has the shapes, strides and dtypes of the first full batch, for which code is compiled."""
        kind: list[tuple[object, ...]] = [(part.shape, part.stride(), part.dtype) for part in batch]
        self._kind = self._kind or kind
        return kind == self._kind

    def _run_compiled(self, *args: Tensor) -> tuple[Tensor, ...]:
        try:
            with _without_autocast(self.parameter):
                return self._compiled(*args)
        except CompileError as error:  # nothing has run yet
            if self._on_failure is None:
                raise
            self._on_failure(error)
            self._compiled = self.eager
            return self.eager(*args)

    def close(self) -> None:
        """Give each parameter its own memory again. The step must not be called after this."""
        for tensors in self._kept:
            separate_(tensors)


def _without_autocast(parameter: Tensor) -> AbstractContextManager[object]:
    """Disable any surrounding autocast: around several steps, it would cache the weights of the first.

    Disabling takes 3 % of a step at batch 32, so it is done only where autocast is enabled.
    """
    kind = parameter.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _only_if_finite(loss: Tensor, *values: Tensor) -> list[Tensor]:
    """The values, or zeros if the loss is not finite, so the update keeps the parameters finite.

    They can then show which layer the loss diverged in.
    """
    is_finite = loss.detach().isfinite()
    return [torch.where(is_finite, value, 0.0) for value in values]


class _Penalized(nn.Module):
    """A model together with its penalty, as functions of the parameters that it is called with."""

    def __init__(self, model: nn.Module, penalty: Penalty | None, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.penalty, self.autocast = model, penalty, autocast

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | float]:
        """Map inputs (B, ...) to logits (B, C) and the penalty ()."""
        penalty = self.penalty(self.model) if self.penalty else 0.0
        if self.autocast is None:
            return self.model(inputs), penalty
        with torch.autocast(inputs.device.type, self.autocast, cache_enabled=False):
            return self.model(inputs).float(), penalty


def find_misfit(model: nn.Module, optimizer: Optimizer) -> str:
    """Why a model and its optimizer can't have a compiled step; "" if they can.

    The parameters must be exactly the optimizer's, all trained, not shared between layers, and able to be views of one
    flat tensor.
    """
    parameters = _parameters_of(optimizer)
    count, others = len(list(model.parameters())), set(map(id, model.parameters())) ^ set(map(id, parameters))
    if others:
        return f"an optimizer of {len(parameters)} parameters, not the model's {count}"
    if len(list(model.named_parameters(remove_duplicate=False))) > count:
        return "tied parameters, which several layers share"
    if not all(parameter.requires_grad for parameter in parameters):
        return "frozen parameters"
    return find_split(parameters)


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
