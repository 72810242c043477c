"""Detects hooks and compiled modules, for which torch has no public functions."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_STEP_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs hooks, its own or global ones. Its children's hooks do not count.

    Code that calls a module's layers directly skips these hooks.
    """
    return any(getattr(module, name) for name in MODULE_HOOKS) or bool(_has_any_global_hook())


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether a backward pass to the parameter runs hooks."""
    return any(getattr(parameter, name) for name in GRADIENT_HOOKS)


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether the optimizer's step differs from its class's because it runs hooks or was replaced."""
    own = vars(optimizer)
    return any(own[name] for name in STEP_HOOKS) or any(GLOBAL_STEP_HOOKS) or _is_replaced(optimizer)


def _is_replaced(optimizer: Optimizer) -> bool:
    """Whether the optimizer's `step` is neither its class's nor a scheduler's wrapper around that."""
    step: Any = vars(optimizer).get("step")
    by_schedule = hasattr(step, "_wrapped_by_lr_sched") and step.__wrapped__ is type(optimizer).step
    return step is not None and not by_schedule


def is_compiled(module: nn.Module) -> bool:
    """Whether the module is the result of `torch.compile`."""
    return type(module).__module__.startswith("torch._dynamo")
