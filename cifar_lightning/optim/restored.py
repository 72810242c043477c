"""Trying something with a model and its optimizer without leaving a trace."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def set_rates(optimizer: Optimizer, rates: Iterable[float | Tensor]) -> None:
    """Set the learning rate of each parameter group, in place if it is a tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@contextmanager
def restored(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Restore model and optimizer bit for bit at the end: weights, buffers, gradients, modes, learning rates, state."""
    extra = copy.deepcopy(model.state_dict())
    parameters = {*model.parameters(), *(p for group in optimizer.param_groups for p in group["params"])}
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    values = [(t, t.detach().clone()) for t in (*parameters, *(buffer for *_, buffer in buffers))]
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    modes = [(module, module.training) for module in model.modules()]
    groups = [copy.deepcopy({k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups]
    state = dict(optimizer.state)
    for parameter, own in state.items():
        optimizer.state[parameter] = copy.deepcopy(own)
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        model.load_state_dict(extra)
        with torch.no_grad():
            for module, name, buffer in buffers:
                setattr(module, name, buffer)
            for tensor, value in values:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        set_rates(optimizer, [group["lr"] for group in groups])
        for group, old in zip(optimizer.param_groups, groups, strict=True):
            group.update({k: v for k, v in old.items() if k != "lr"})
        optimizer.state.clear()
        optimizer.state.update(state)
