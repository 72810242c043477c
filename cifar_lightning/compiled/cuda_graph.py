"""Training steps as CUDA graphs: one launch for several steps, instead of over a hundred per step.

A step of a 20 x 100 network takes about 160 kernels of a few microseconds, and launching each from Python takes longer
than running it on the GPU. A graph replays kernels that were launched once, on the same tensors with new contents.

`torch.cuda.CUDAGraph` captures them rather than `torch.compile(mode="reduce-overhead")`, which needs Triton, makes one
graph per call, and makes none if a call changes an input that is neither a parameter nor a buffer, such as an
optimizer's running mean. The captured kernels are those of plain training, so results are the same. scripts/gpu_check
times both.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from cifar_lightning.compiled.torch_internals import Step
from cifar_lightning.compiled.updates import Gradients

#: Steps in the larger graph; left-over steps use a graph of one step.
SEVERAL = 10
#: Steps before the first graph: libraries initialize in their first calls, which can't be captured.
WARM_UP = 3

#: A waiting step: inputs, targets and the factors of the update.
Waiting = tuple[Tensor, Tensor, Any]


def makes_graphs(device: torch.device) -> bool:
    """Whether compiled steps on the device are CUDA graphs rather than Inductor's code."""
    return device.type == "cuda"


class StepParts(Protocol):
    """The parts of a step that are captured; implemented by `CompiledStep` and `Stack`."""

    #: Maps inputs, targets and factors to loss, logits and the gradients for the optimizer, if any.
    eager: Step

    @property
    def updates_itself(self) -> bool:
        """Whether the optimizer's update is part of the step."""

    @property
    def parameter(self) -> Tensor:
        """One of the parameters."""

    def advance(self) -> Any:
        """Count a step and return the factors of its update."""

    def finish(self, gradients: Gradients) -> None:
        """Step the optimizer, if the update is not part of the step."""

    def close(self) -> None:
        """Give the parameters their own memory again."""


class GraphedSteps:
    """Steps that are added one at a time and run together by CUDA graphs; on a CPU, without graphs.

    Nothing waits for the GPU. The first steps run without a graph, and each new number or shape of batches is captured
    once. Dropout uses CUDA's default generator, which each capture registers with its graph: a replay draws what the
    captured calls would have drawn.

    Args:
        step: The step's parts.
        constrain: Called after each step's update and captured with it, if the update is part of the step; None for
            nothing.
        several: Number of steps in the larger of the two graphs.
        warm_up: Number of steps before the first graph.
    """

    #: There is no Inductor code to cache.
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
        """Take a step for each batch; yield the results of `run`.

        An optimizer that steps itself runs at once, since its learning rate may change before the next batch.
        """
        for inputs, targets in batches:
            self.add(inputs, targets)
            if not self.updates_itself:
                yield self.run()
        if self._waiting:
            yield self.run()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add a step with the optimizer's current learning rate.

        Args:
            inputs: (..., B, *), which must stay as they are until `run`.
            targets: (..., B), or probabilities (..., B, C).
        """
        self._waiting.append((inputs, targets, self._step.advance()))

    def run(self) -> tuple[Tensor, Tensor]:
        """Run the steps that were added, at least one.

        Returns:
            The loss of the last step, (...), and the logits of all steps, concatenated, (..., N, C).
        """
        waiting, self._waiting = self._waiting, []
        losses, logits = zip(*map(self._make, self._groups(waiting)), strict=True)
        return losses[-1], torch.cat(logits, -2)

    def _groups(self, waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
        """Group the steps for the larger graph where enough of one shape follow each other; others come alone."""
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
        """The factors as a tensor on the parameters' device, copied from pinned memory without waiting."""
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
        """Run K consecutive steps with inputs (K, ..., B, *), targets (K, ..., B, *) and factors (K, ...)."""
        every_logits = []
        for one in zip(inputs, targets, factors, strict=True):
            loss, logits, *gradients = self._step.eager(*one)
            every_logits.append(logits)
            if self._constrain is not None:
                self._constrain()
        return loss, torch.cat(every_logits, -2), *gradients

    def close(self) -> None:
        """Give the parameters their own memory again. No step may be run after this."""
        self._graphs.clear()
        self._step.close()


class Graph:
    """A function of tensors, captured by its first call and replayed by every call.

    Args:
        function: Must do the same for all tensors of the first call's shapes, and must not wait for results. Other
            tensors that it reads or writes must keep their memory.
    """

    def __init__(self, function: Step) -> None:
        self._function = function
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], tuple[Tensor, ...]] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Replay the captured function with these tensors."""
        if self._replay is None:
            self._inputs = tuple(map(torch.clone, inputs))
            self._replay = capture(self._function, self._inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        return tuple(map(torch.clone, self._replay()))  # the next replay writes to the same places


def capture(function: Step, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Capture a call of the function without running it; return what replays it, or without a GPU, what calls it."""
    if not inputs[0].is_cuda:
        return partial(function, *inputs)
    graph = torch.cuda.CUDAGraph()
    # (Excludes whatever loggers' threads do in the meantime.)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(*inputs)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay
