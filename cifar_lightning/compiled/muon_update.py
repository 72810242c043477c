"""The update of `MuonAdamW` as a function that a compiled step can contain."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.compiled.hooks import has_step_hooks
from cifar_lightning.compiled.torch_internals import mark_stepped
from cifar_lightning.compiled.updates import Gradients, broadcast, follow_, join_
from cifar_lightning.optim.muon import MuonAdamW, Precision, add_state, find_directions


class Constants(NamedTuple):
    """What the update of a step depends on."""

    shapes: tuple[tuple[int, ...], ...]  # of the hidden matrices, (m, n) each
    decaying: int  # number of further elements that decay: the output matrix
    momentum: float
    beta1: float
    beta2: float
    eps: float
    ns_steps: int
    precision: Precision


class MuonUpdate:
    """Muon and AdamW as part of a graph, on flat tensors and with the state of `MuonAdamW`.

    A flat tensor holds first the hidden matrices, then the output matrix, then the vectors.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, groups = optimizer, optimizer.param_groups
        self._group = group = groups[0]
        hidden, others = group["params"], [p for each in groups[1:] for p in each["params"]]
        for parameter in (*hidden, *others):
            add_state(optimizer.state[parameter], parameter, parameter in set(hidden))
        states = [optimizer.state[parameter] for parameter in (*hidden, *others)]
        self._steps = join_(states, "step")
        self._t = int(self._steps[0])
        #: Parameters p, running means m, and AdamW's running mean squares v.
        self.tensors: list[list[Tensor]] = [
            [*hidden, *others],
            [state["exp_avg"] for state in states],
            [optimizer.state[parameter]["exp_avg_sq"] for parameter in others],
        ]
        (beta1, beta2), decaying = group["betas"], sum(p.numel() for p in others if p.ndim == 2)
        #: What does not change from step to step.
        self.constants: tuple[Any, ...] = Constants(
            tuple(tuple(parameter.shape) for parameter in hidden),
            *(decaying, group["momentum"], beta1, beta2, group["eps"], group["ns_steps"], group["precision"]),
        )

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is a MuonAdamW that split the parameters itself, with one learning rate."""
        if type(optimizer) is not MuonAdamW or has_step_hooks(optimizer):
            return False
        groups, decay = optimizer.param_groups, optimizer.param_groups[0]["weight_decay"]
        expected = [(True, {2}, decay), (False, {2}, decay), (False, {1}, 0.0)]
        kinds = [(each["orthogonalize"], {p.ndim for p in each["params"]}, each["weight_decay"]) for each in groups]
        alike = ("lr", "momentum", "betas", "eps", "ns_steps", "precision")
        if kinds != expected or any(each[name] != groups[0][name] for each in groups for name in alike):
            return False
        states = [optimizer.state.get(parameter) or {} for each in groups for parameter in each["params"]]
        return len({float(state.get("step", -1)) for state in states}) == 1 and "max_momentum" not in groups[0]

    def advance(self) -> tuple[float, ...]:
        """Count a step and return the factors of p, of Muon's directions, and of AdamW's m and v in it."""
        lr, (beta1, beta2) = float(self._group["lr"]), self._group["betas"]
        self._steps += 1
        self._t = t = self._t + 1
        mark_stepped(self._optimizer)
        return lr * self._group["weight_decay"], lr, lr / (1 - beta1**t), 1 / (1 - beta2**t)

    @staticmethod
    def apply(constants: tuple[Any, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Apply the step in place; factors are (4,), and zeros leave the parameters as they are."""
        c = Constants(*constants)
        (g,), (p,), (m,), (v,) = gradients, *tensors
        of_p, of_direction, of_m, of_v = factors.unbind()
        sizes = [prod(shape) for shape in c.shapes]
        hidden, decaying = sum(sizes), sum(sizes) + c.decaying
        # All parameters at once wherever possible: each pass over a large network's memory takes milliseconds.
        index = torch.arange(len(p), device=p.device)
        m.lerp_(g, torch.where(index < hidden, m.new_full((), 1 - c.momentum), m.new_full((), 1 - c.beta1)))
        # Muon
        parts = g[:hidden].lerp(m[:hidden], c.momentum).split(sizes)
        matrices = [part.view(shape) for part, shape in zip(parts, c.shapes, strict=True)]
        directions = find_directions(matrices, c.ns_steps, c.precision)
        # AdamW
        v.mul_(c.beta2).addcmul_(g[hidden:], g[hidden:], value=1 - c.beta2)
        step = of_m * m[hidden:] / ((of_v * v).sqrt() + c.eps)
        steps = torch.cat([*(of_direction * direction.reshape(-1) for direction in directions), step])
        p.sub_(torch.where(index < decaying, of_p * p, 0.0) + steps)


class StackedMuonUpdate(MuonUpdate):
    """The same for a stack of M networks, on a stacked tensor (M, ...) for each parameter.

    Args:
        optimizer: One network's optimizer.
        parameters: All of the network's parameters, in its order.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        super().__init__(optimizer)
        hidden = set(optimizer.param_groups[0]["params"])
        kinds = ["hidden" if p in hidden else "output" if p.ndim == 2 else "vector" for p in parameters]
        states = [optimizer.state[parameter] for parameter in parameters]
        #: Parameters p, running means m, and running mean squares v, which are empty where Muon has none.
        self.tensors = [
            list(parameters),
            [state["exp_avg"] for state in states],
            [state.get("exp_avg_sq", state["exp_avg"].new_empty(0)) for state in states],
        ]
        self.constants = (tuple(kinds), self.constants)

    @staticmethod
    def apply(constants: tuple[Any, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Apply the step in place; factors are (4, M)."""
        kinds, c = constants[0], Constants(*constants[1])
        parts = list(zip(kinds, gradients, *tensors, strict=True))
        hidden = [(g, p, m) for kind, g, p, m, _ in parts if kind == "hidden"]
        for g, _, m in hidden:
            m.lerp_(g, 1 - c.momentum)
        directions = find_directions([g.lerp(m, c.momentum) for g, _, m in hidden], c.ns_steps, c.precision)
        for (_, p, _), direction in zip(hidden, directions, strict=True):
            of_p, of_direction, *_ = broadcast(factors, p)
            p.sub_(of_p * p + of_direction * direction)
        for kind, g, p, m, v in parts:
            if kind != "hidden":
                of_p, _, of_m, of_v = broadcast(factors, p)
                follow_(g, m, v, c.beta1, c.beta2)
                decay = of_p * p if kind == "output" else 0.0
                p.sub_(decay + of_m * m / ((of_v * v).sqrt() + c.eps))
