"""Training steps as CUDA graphs: one launch for several steps, in the place of some hundred for each.

A step of a 20 x 100 network is about 160 kernels of a few microseconds, for each of which Python and the driver take
longer than the GPU. A graph repeats kernels that were launched once, with the same tensors and other contents.

`torch.cuda.CUDAGraph` captures them, not `torch.compile(mode="reduce-overhead")`. That one needs Triton, has a graph
for each call, and none where a call changes an input that is neither a parameter nor a buffer, such as an optimizer's
running mean. What is captured here are the kernels of plain training, so the results are the same. scripts/gpu_check
times both.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from cifar_lightning.compiled.torch_internals import Step
from cifar_lightning.compiled.updates import Gradients

#: Steps in one graph, where so many follow each other; what is left over has a graph of one step.
SEVERAL = 10
#: Steps before the first graph: libraries get ready in their first calls, which can't be captured.
WARM_UP = 3

#: Inputs, targets and the factors of the update.
Waiting = tuple[Tensor, Tensor, Any]


def makes_graphs(device: torch.device) -> bool:
    """Whether compiled steps on the device are CUDA graphs, and not Inductor's code."""
    return device.type == "cuda"


class StepParts(Protocol):
    """What is to be captured of a step; `CompiledStep` and `Stack` have it."""

    #: Maps inputs, targets and factors to loss, logits and what gradients the optimizer is to step by.
    eager: Step

    @property
    def updates_itself(self) -> bool:
        """Whether the optimizer's update is part of the step."""

    @property
    def parameter(self) -> Tensor:
        """One of the parameters."""

    def advance(self) -> Any:
        """Count a step; the factors of its update."""

    def finish(self, gradients: Gradients) -> None:
        """Let the optimizer step, if the update is not part of the step."""

    def close(self) -> None:
        """Give parameters memory of their own."""


class GraphedSteps:
    """Steps that are added one by one, and made all at once by CUDA graphs; on a CPU, by calling what a graph holds.

    Nothing waits for the GPU. The first steps of a training run without a graph, and each new number or shape of
    batches is captured once. Dropout goes on with the default generator of CUDA, which each capture registers with its
    graph: a replay draws what the captured calls would have drawn.

    Args:
        step: The step's parts.
        constrain: Called after each step's update and captured with it, if the update is part of the step; None for
            nothing.
        several: Number of steps in the larger one of the two graphs.
        warm_up: Number of steps before the first graph.
    """

    #: No code of Inductor's, which could be kept.
    entry = None

    def __init__(
        self,
        step: StepParts,
        constrain: Callable[[], None] | None = None,
        several: int = SEVERAL,
        warm_up: int = WARM_UP,
    ) -> None:
        self._step = step
        self._constrain, self._several = (constrain, several) if step.updates_itself else (None, 1)
        self._warm_up = warm_up
        self._waiting: list[Waiting] = []
        self._graphs: dict[tuple[object, ...], Graph] = {}

    @property
    def updates_itself(self) -> bool:
        """Whether the update is in the graphs."""
        return self._step.updates_itself

    def run_all(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Make a step for each batch; yield what `run` returns.

        An optimizer that steps itself goes by its own rate, which may be another one at the next batch: so it does not
        wait for that.
        """
        for inputs, targets in batches:
            self.add(inputs, targets)
            if not self.updates_itself:
                yield self.run()
        if self._waiting:
            yield self.run()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take note of a step, at the optimizer's present rate.

        Args:
            inputs: (..., B, *), which must stay as they are until `run`.
            targets: (..., B), or probabilities (..., B, C).
        """
        self._waiting.append((inputs, targets, self._step.advance()))

    def run(self) -> tuple[Tensor, Tensor]:
        """Make the steps that were added, at least one.

        Returns:
            The loss of the last, (...), and the logits of all in a row, (..., N, C).
        """
        waiting, self._waiting = self._waiting, []
        losses, logits = zip(*map(self._make, self._groups(waiting)), strict=True)
        return losses[-1], torch.cat(logits, -2)

    def _groups(self, waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
        """As many steps of one shape as the larger graph has, or else one."""
        start = 0
        while start < len(waiting):
            group = waiting[start : start + self._several]
            is_whole = len(group) == self._several and len({inputs.shape for inputs, *_ in group}) == 1
            group = group if is_whole and not self._warm_up else group[:1]
            yield group
            start += len(group)

    def _make(self, group: Sequence[Waiting]) -> tuple[Tensor, Tensor]:
        every_inputs, every_targets, every_factors = zip(*group, strict=True)
        inputs, targets, factors = torch.stack(every_inputs), torch.stack(every_targets), self._move(every_factors)
        loss, logits, *gradients = self._graph_for(inputs, targets)(inputs, targets, factors)
        self._step.finish(gradients)
        return loss, logits

    def _move(self, factors: Sequence[Any]) -> Tensor:
        """The factors as a tensor beside the parameters, for which nothing waits: it comes from pinned memory."""
        parameter = self._step.parameter
        there = torch.tensor(factors, dtype=parameter.dtype, pin_memory=parameter.is_cuda)
        return there.to(parameter.device, non_blocking=True)

    def _graph_for(self, inputs: Tensor, targets: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        if self._warm_up:
            self._warm_up -= 1
            return self._compute
        key = inputs.shape, inputs.dtype, targets.dtype
        if key not in self._graphs:
            self._graphs[key] = Graph(self._compute)
        return self._graphs[key]

    def _compute(self, inputs: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        """Make steps in a row, of inputs (K, ..., B, *), targets (K, ..., B, *) and factors (K, ...)."""
        every_logits = []
        for one in zip(inputs, targets, factors, strict=True):
            loss, logits, *gradients = self._step.eager(*one)
            every_logits.append(logits)
            if self._constrain is not None:
                self._constrain()
        return loss, torch.cat(every_logits, -2), *gradients

    def close(self) -> None:
        """Give parameters memory of their own again; no step must be made any more."""
        self._graphs.clear()
        self._step.close()


class Graph:
    """A function of tensors, captured by its first call and repeated by each.

    Args:
        function: Must do the same for all tensors of the first ones' shapes, and wait for no result. What else it reads
            or writes must stay where it is.
    """

    def __init__(self, function: Step) -> None:
        self._function = function
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], tuple[Tensor, ...]] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Repeat what was captured of the function, for these tensors."""
        if self._replay is None:
            self._inputs = tuple(map(torch.clone, inputs))
            self._replay = capture(self._function, self._inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        return tuple(map(torch.clone, self._replay()))  # the next replay writes to the same places


def capture(function: Step, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """What repeats the call of a function, which is not made yet; elsewhere than on a GPU it just calls it."""
    if not inputs[0].is_cuda:
        return partial(function, *inputs)
    graph = torch.cuda.CUDAGraph()
    # (What the threads of loggers do meanwhile is no part of it.)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(*inputs)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay
