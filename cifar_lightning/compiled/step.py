"""A training step as compiled code: loss, gradients and update in one graph.

A 20 x 100 network is so small that everything but its matrix products dominates a step of PyTorch: the dispatcher, the
autograd engine, forty parameters updated one by one.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, NAdam, Optimizer

from cifar_lightning.compiled.code_cache import compile_once

Gradients = Sequence[Tensor]

#: More threads must be this much faster than one at the products to be chosen. A whole step gains less, and loses
#: more where another process takes a core: at batch 32, twice as much with 1.15 as with 1.25.
WORTH_A_THREAD = 1.25


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

        self._eager, self._compiled = step, compile_once(step)
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


class NAdamUpdate:
    """NAdam (Dozat 2016), with the state of `torch.optim.NAdam`, for a graph to be part of.

    With g the gradient, m and v its running mean and mean square, psi the momentum decay,
    mu_t = beta_1 (1 - 0.96^(t psi) / 2) and M_t the product of mu_1 to mu_t:

        p -= lr ((1 - mu_t) / (1 - M_t) g + mu_{t+1} / (1 - M_{t+1}) m) / (sqrt(v / (1 - beta_2^t)) + eps)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._group = optimizer, optimizer.param_groups[0]
        parameters: list[Tensor] = self._group["params"]
        states = [optimizer.state[parameter] for parameter in parameters]
        if not states[0]:  # as torch's own first step makes it
            for parameter, state in zip(parameters, states, strict=True):
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"], state["mu_product"] = torch.zeros(()), torch.ones(())
        # All parameters stand at the same step. Each has its element of these, so that torch could go on with them.
        self._steps = torch.stack([state["step"] for state in states])
        self._mu_products = torch.stack([state["mu_product"] for state in states])
        for state, step, mu_product in zip(states, self._steps, self._mu_products, strict=True):
            state["step"], state["mu_product"] = step, mu_product
        self._t, self._mu_product = int(self._steps[0]), self._mu_products[0]
        #: Parameters p, running means m, running mean squares v.
        self.tensors = [parameters, *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))]
        #: What does not change from step to step.
        self.constants: tuple[float, ...] = (*self._group["betas"], self._group["eps"])

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is a NAdam of one group, with nothing that is left out here."""
        return type(optimizer) is NAdam and _is_plain(
            optimizer, "weight_decay", "decoupled_weight_decay", "maximize", "capturable", "differentiable"
        )

    def advance(self) -> tuple[float, ...]:
        """Count a step; the factors of g, m and v in it."""
        lr, (beta1, beta2), psi = float(self._group["lr"]), self._group["betas"], self._group["momentum_decay"]
        self._steps += 1
        self._t = t = self._t + 1
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (i * psi)) for i in (t, t + 1))
        self._mu_products *= mu
        product = self._mu_product.item()
        _mark_stepped(self._optimizer)
        return lr * (1 - mu) / (1 - product), lr * mu_next / (1 - product * mu_next), 1 / (1 - beta2**t)

    @staticmethod
    def apply(constants: tuple[float, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Make the step, in place; factors (3,), or (3, M) for tensors in which M networks are stacked."""
        beta1, beta2, eps = constants
        for g, p, m, v in zip(gradients, *tensors, strict=True):
            of_g, of_m, of_v = _broadcast(factors, p)
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p.sub_((of_g * g + of_m * m) / ((of_v * v).sqrt() + eps))


class SGDUpdate:
    """Gradient descent without momentum, for a graph to be part of: p -= lr g."""

    constants: tuple[float, ...] = ()

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._group = optimizer, optimizer.param_groups[0]
        self.tensors: list[list[Tensor]] = [self._group["params"]]

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is an SGD of one group, with nothing that is left out here."""
        return type(optimizer) is SGD and _is_plain(optimizer, "momentum", "weight_decay", "maximize", "differentiable")

    def advance(self) -> tuple[float, ...]:
        """Count a step; the factor of g in it."""
        _mark_stepped(self._optimizer)
        return (float(self._group["lr"]),)

    @staticmethod
    def apply(constants: tuple[float, ...], factors: Tensor, gradients: Gradients, *tensors: Sequence[Tensor]) -> None:
        """Make the step, in place; factors (1,), or (1, M) for tensors in which M networks are stacked."""
        for g, p in zip(gradients, *tensors, strict=True):
            (of_g,) = _broadcast(factors, p)
            p.sub_(of_g * g)


def make_update(optimizer: Optimizer) -> NAdamUpdate | SGDUpdate | None:
    """One of the updates above, or None: then the optimizer steps itself, by one call for all parameters if it can."""
    for update in (NAdamUpdate, SGDUpdate):
        if update.supports(optimizer):
            return update(optimizer)
    for group in optimizer.param_groups:
        if group.get("fused", ...) is None and not group.get("foreach") and not optimizer.state:
            group["fused"] = True
        elif group.get("foreach", ...) is None:
            group["foreach"] = True
    return None


def clip_by_norm(gradients: Gradients, bound: float) -> Gradients:
    """The gradients, scaled down to the norm `bound` of them all; as `torch.nn.utils.clip_grad_norm_` does it."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = (bound / (norm + 1e-6)).clamp(max=1)
    return [gradient * scale for gradient in gradients]


def clip_by_value(gradients: Gradients, bound: float) -> Gradients:
    """The gradients, each element within -bound to bound."""
    return [gradient.clamp(-bound, bound) for gradient in gradients]


def _broadcast(factors: Tensor, parameter: Tensor) -> tuple[Tensor, ...]:
    """Each factor, () or (M,), in a shape that multiplies the parameter, (...) or (M, ...)."""
    return factors.reshape(factors.shape + (1,) * (parameter.ndim + 1 - factors.ndim)).unbind()


def _is_plain(optimizer: Optimizer, *extras: str) -> bool:
    groups = optimizer.param_groups
    cycles_momentum = "max_momentum" in groups[0]  # a schedule moves what is taken for constant
    return len(groups) == 1 and not cycles_momentum and not any(groups[0][name] for name in extras)


def _mark_stepped(optimizer: Optimizer) -> None:
    optimizer._opt_called = True  # type: ignore[attr-defined]  # or a schedule takes it for unused


def has_compiler() -> bool:
    """Whether there is the C++ compiler that `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def choose_threads(features: int, width: int, batch_size: int) -> int:
    """The number of threads, one or torch's own, that is faster now at a (features, width) layer's products.

    At batch 32 a second thread gains little on a free core and loses much on a busy one. The environment variable
    OMP_NUM_THREADS decides where it is set.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    x, gradient, weight = torch.ones(batch_size, features), torch.ones(batch_size, width), torch.ones(width, features)
    seconds = {}
    for threads in (most, 1):
        torch.set_num_threads(threads)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            x @ weight.T, gradient.T @ x
            for _ in range(20):
                gradient.T @ gradient
            times.append(time.perf_counter() - start)
        seconds[threads] = sorted(times)[len(times) // 2]
    torch.set_num_threads(most)
    return most if seconds[1] > WORTH_A_THREAD * seconds[most] else 1
