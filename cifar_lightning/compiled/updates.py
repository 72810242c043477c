"""Optimizer updates and gradient clipping as functions that a compiled step can contain."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from cifar_lightning.compiled.hooks import has_step_hooks
from cifar_lightning.compiled.torch_internals import mark_stepped

Gradients = Sequence[Tensor]
State = dict[str, Any]

#: torch's names of the running mean and mean square of a gradient.
MOMENTS = ("exp_avg", "exp_avg_sq")


class NAdamUpdate:
    """NAdam (Dozat 2016) as part of a graph, using the state of `torch.optim.NAdam`.

    With g the gradient, m and v its running mean and mean square, psi the momentum decay,
    mu_t = beta_1 (1 - 0.96^(t psi) / 2) and M_t the product of mu_1 to mu_t:

        p -= lr ((1 - mu_t) / (1 - M_t) g + mu_{t+1} / (1 - M_{t+1}) m) / (sqrt(v / (1 - beta_2^t)) + eps)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._group = optimizer, optimizer.param_groups[0]
        states = _states_of(optimizer, "mu_product")
        # All parameters are at the same step. Each keeps its element of these, so torch can continue with them.
        self._steps, self._mu_products = join_(states, "step"), join_(states, "mu_product")
        self._t, self._mu_product = int(self._steps[0]), self._mu_products[0]
        #: Parameters p, running means m, running mean squares v.
        self.tensors = [self._group["params"], *([state[name] for state in states] for name in MOMENTS)]
        #: Factors that do not change from step to step.
        self.constants: tuple[Any, ...] = (*self._group["betas"], self._group["eps"])

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is a NAdam with one group and only options that are implemented here."""
        return type(optimizer) is NAdam and _is_plain(
            optimizer, "weight_decay", "decoupled_weight_decay", "maximize", "capturable", "differentiable"
        )

    def advance(self) -> tuple[float, ...]:
        """Count a step and return the factors of g, m and v in it."""
        lr, (beta1, beta2), psi = float(self._group["lr"]), self._group["betas"], self._group["momentum_decay"]
        self._steps += 1
        self._t = t = self._t + 1
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (i * psi)) for i in (t, t + 1))
        self._mu_products *= mu
        product = self._mu_product.item()
        mark_stepped(self._optimizer)
        return lr * (1 - mu) / (1 - product), lr * mu_next / (1 - product * mu_next), 1 / (1 - beta2**t)

    @staticmethod
    def apply(constants: tuple[Any, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Apply the step in place; factors are (3,), or (3, M) for stacked tensors of M networks."""
        beta1, beta2, eps = constants
        for g, p, m, v in zip(gradients, *tensors, strict=True):
            of_g, of_m, of_v = broadcast(factors, p)
            follow_(g, m, v, beta1, beta2)
            p.sub_((of_g * g + of_m * m) / ((of_v * v).sqrt() + eps))


class AdamUpdate:
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019) as part of a graph, using torch's state.

    With g the gradient, m and v its running mean and mean square, lambda the weight decay, 0 for Adam:

        p -= lr lambda p + lr / (1 - beta_1^t) m / (sqrt(v / (1 - beta_2^t)) + eps)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._group = optimizer, optimizer.param_groups[0]
        states = _states_of(optimizer)
        self._steps = join_(states, "step")
        self._t = int(self._steps[0])
        self.tensors = [self._group["params"], *([state[name] for state in states] for name in MOMENTS)]
        self.constants: tuple[Any, ...] = (*self._group["betas"], self._group["eps"])

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is an AdamW, or an Adam without weight decay, and has only options implemented here."""
        decay = () if type(optimizer) is AdamW else ("weight_decay",)
        return type(optimizer) in (Adam, AdamW) and _is_plain(
            optimizer, "amsgrad", "maximize", "capturable", "differentiable", *decay
        )

    def advance(self) -> tuple[float, ...]:
        """Count a step and return the factors of p, m and v in it."""
        lr, (beta1, beta2) = float(self._group["lr"]), self._group["betas"]
        self._steps += 1
        self._t = t = self._t + 1
        mark_stepped(self._optimizer)
        return lr * self._group["weight_decay"], lr / (1 - beta1**t), 1 / (1 - beta2**t)

    @staticmethod
    def apply(constants: tuple[Any, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Apply the step in place; factors are (3,), or (3, M) for stacked tensors of M networks."""
        beta1, beta2, eps = constants
        for g, p, m, v in zip(gradients, *tensors, strict=True):
            of_p, of_m, of_v = broadcast(factors, p)
            follow_(g, m, v, beta1, beta2)
            p.sub_(of_p * p + of_m * m / ((of_v * v).sqrt() + eps))


class SGDUpdate:
    """Gradient descent without momentum as part of a graph: p -= lr g."""

    constants: tuple[Any, ...] = ()

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._group = optimizer, optimizer.param_groups[0]
        self.tensors: list[list[Tensor]] = [self._group["params"]]

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is an SGD with one group and only options that are implemented here."""
        return type(optimizer) is SGD and _is_plain(optimizer, "momentum", "weight_decay", "maximize", "differentiable")

    def advance(self) -> tuple[float, ...]:
        """Count a step and return the factor of g in it."""
        mark_stepped(self._optimizer)
        return (float(self._group["lr"]),)

    @staticmethod
    def apply(constants: tuple[Any, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Apply the step in place; factors are (1,), or (1, M) for stacked tensors of M networks."""
        for g, p in zip(gradients, *tensors, strict=True):
            (of_g,) = broadcast(factors, p)
            p.sub_(of_g * g)


Update = NAdamUpdate | AdamUpdate | SGDUpdate


def make_update(optimizer: Optimizer) -> Update | None:
    """One of the updates above, or None if the optimizer must step itself, then with fused or foreach kernels."""
    for update in (NAdamUpdate, AdamUpdate, SGDUpdate):
        if update.supports(optimizer):
            return update(optimizer)
    for group in optimizer.param_groups:
        if group.get("fused", ...) is None and not group.get("foreach") and not optimizer.state:
            group["fused"] = True
        elif group.get("foreach", ...) is None:
            group["foreach"] = True
    return None


def clip_by_norm(gradients: Gradients, bound: float) -> Gradients:
    """Scale the gradients down to a total norm of at most `bound`, like `torch.nn.utils.clip_grad_norm_`."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = (bound / (norm + 1e-6)).clamp(max=1)
    return [gradient * scale for gradient in gradients]


def clip_by_value(gradients: Gradients, bound: float) -> Gradients:
    """Clamp each element of the gradients to [-bound, bound]."""
    return [gradient.clamp(-bound, bound) for gradient in gradients]


def _states_of(optimizer: Optimizer, *products: str) -> list[State]:
    """The state of each parameter, created as torch's first step would if it is missing.

    Args:
        optimizer: An optimizer of the Adam family.
        products: Names of entries that start at 1.
    """
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    states: list[State] = [optimizer.state[parameter] for parameter in parameters]
    if not states[0]:
        for parameter, state in zip(parameters, states, strict=True):
            state |= {name: torch.zeros_like(parameter) for name in MOMENTS}
            wide = torch.promote_types(torch.get_default_dtype(), torch.float32)  # as in torch's own
            state["step"] = torch.zeros((), dtype=wide)
            state |= {name: torch.ones((), dtype=wide) for name in products}
    return states


def join_(states: Sequence[State], name: str) -> Tensor:
    """Make the numbers called `name` elements of one tensor (N,), and return it."""
    joined = torch.stack([state[name] for state in states]).cpu()  # reading it must not wait for a GPU
    for state, number in zip(states, joined, strict=True):
        state[name] = number
    return joined


def follow_(g: Tensor, m: Tensor, v: Tensor, beta1: float, beta2: float) -> None:
    """Update the running mean m and mean square v with a gradient g."""
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


def broadcast(factors: Tensor, parameter: Tensor) -> tuple[Tensor, ...]:
    """Reshape each factor, () or (M,), to broadcast with the parameter, (...) or (M, ...)."""
    return factors.reshape(factors.shape + (1,) * (parameter.ndim + 1 - factors.ndim)).unbind()


def _is_plain(optimizer: Optimizer, *extras: str) -> bool:
    groups = optimizer.param_groups
    # Parameters at different steps, as after some were frozen, are left to torch.
    states = [optimizer.state.get(parameter) or {} for parameter in groups[0]["params"]]
    if len({float(state.get("step", -1)) for state in states}) > 1 or has_step_hooks(optimizer):
        return False
    cycles_momentum = "max_momentum" in groups[0]  # a schedule changes what would be a constant
    return len(groups) == 1 and not cycles_momentum and not any(groups[0][name] for name in extras)
