"""Whether somebody watches or compiles a module or a parameter: no public name of torch says so."""

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
    """Whether calling the module runs hooks: its own, or the global ones of all modules; its children have their own.

    Code that calls a module's layers, and not the module, leaves these hooks out.
    """
    return any(getattr(module, name) for name in MODULE_HOOKS) or bool(_has_any_global_hook())


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether a backward pass that reaches the parameter runs hooks."""
    return any(getattr(parameter, name) for name in GRADIENT_HOOKS)


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer is another one than its class's: it runs hooks, or was replaced."""
    own = vars(optimizer)
    return any(own[name] for name in STEP_HOOKS) or any(GLOBAL_STEP_HOOKS) or _is_replaced(optimizer)


def _is_replaced(optimizer: Optimizer) -> bool:
    """Whether the optimizer's own `step` is neither its class's nor what a schedule has wrapped around that."""
    step: Any = vars(optimizer).get("step")
    by_schedule = hasattr(step, "_wrapped_by_lr_sched") and step.__wrapped__ is type(optimizer).step
    return step is not None and not by_schedule


def is_compiled(module: nn.Module) -> bool:
    """Whether the module is what `torch.compile` made of a network."""
    return type(module).__module__.startswith("torch._dynamo")
