"""A training step as compiled code: loss and gradients in one graph, NAdam's update in one pass.

A 20 x 100 network is so small that everything but its matrix products dominates a step of PyTorch: the dispatcher, the
autograd engine, forty parameters updated one by one.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, NAdam, Optimizer

P = ParamSpec("P")
T = TypeVar("T")

#: More threads must be this much faster than one to be chosen: they lose more than they gain on a busy machine.
WORTH_A_THREAD = 1.15


class CompiledStep:
    """One step of training, to be called as `loss, logits = step(inputs, targets)`.

    It computes what `F.cross_entropy(model(inputs), targets)`, `backward()` and `optimizer.step()` would, from the
    same random numbers, to within rounding. Compiled code knows one batch size; others, such as an epoch's short last
    batch, run eagerly. The model has to be in training mode, and the optimizer to have the state and the schedule that
    it shall go on with.

    Args:
        model: Maps inputs (B, ...) to logits (B, C).
        optimizer: Any optimizer of the model's parameters. NAdam, which has no fused form in torch, gets one here.
        clip: Called after the gradients are known, which are in the parameters' `grad`; None for no clipping.
        batch_size: The batch size to compile for; None for that of the first batch.
        penalty: Computes what is added to the cross-entropy, from the model's parameters; None for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        clip: Callable[[], None] | None = None,
        batch_size: int | None = None,
        penalty: Callable[[], Tensor | float] | None = None,
    ) -> None:
        self._parameters = parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._clip = clip

        def gradients_of(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
            logits = model(inputs)
            loss = F.cross_entropy(logits, targets)
            if penalty is not None:
                loss = loss + penalty()
            return loss.detach(), logits.detach(), torch.autograd.grad(loss, parameters)

        self._gradients = gradients_of
        self._compiled = compile_once(gradients_of)
        self._update = make_update(optimizer)
        self._batch_size = batch_size
        self._is_compiled = False

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters; return the loss (), and the logits (B, C) from before the update."""
        self._batch_size = self._batch_size or len(inputs)
        if len(inputs) != self._batch_size:
            loss, logits, gradients = self._gradients(inputs, targets)
        else:
            with nullcontext() if self._is_compiled else torch._dynamo.config.patch(trace_autograd_ops=True):
                loss, logits, gradients = self._compiled(inputs, targets)
            self._is_compiled = True
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._clip:
            self._clip()
        self._update()
        return loss, logits


class NAdamUpdate:
    """NAdam (Dozat 2016) on all parameters in one compiled pass, with the state of `torch.optim.NAdam`.

    With g the gradient, m and v its running mean and mean square, psi the momentum decay,
    mu_t = beta_1 (1 - 0.96^(t psi) / 2) and M_t the product of mu_1 to mu_t:

        p -= lr ((1 - mu_t) / (1 - M_t) g + mu_{t+1} / (1 - M_{t+1}) m) / (sqrt(v / (1 - beta_2^t)) + eps)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._group = optimizer.param_groups[0]
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
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        constants = (*self._group["betas"], self._group["eps"])
        self._pass = _CompiledPass(optimizer, _nadam_pass, [*moments, *constants], factors=3)

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is a NAdam of one group, with nothing that the pass leaves out."""
        return type(optimizer) is NAdam and _is_plain(
            optimizer, "weight_decay", "decoupled_weight_decay", "maximize", "capturable", "differentiable"
        )

    def __call__(self) -> None:
        """Make a step with the gradients that are in the parameters' `grad`."""
        lr, (beta1, beta2), psi = float(self._group["lr"]), self._group["betas"], self._group["momentum_decay"]
        self._steps += 1
        t = self._steps[0].item()
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (i * psi)) for i in (t, t + 1))
        self._mu_products *= mu
        product = self._mu_products[0].item()
        self._pass(lr * (1 - mu) / (1 - product), lr * mu_next / (1 - product * mu_next), 1 / (1 - beta2**t))


class SGDUpdate:
    """Gradient descent without momentum, on all parameters in one compiled pass: p -= lr g."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._group = optimizer.param_groups[0]
        self._pass = _CompiledPass(optimizer, _sgd_pass, [], factors=1)

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether `optimizer` is an SGD of one group, with nothing that the pass leaves out."""
        return type(optimizer) is SGD and _is_plain(optimizer, "momentum", "weight_decay", "maximize", "differentiable")

    def __call__(self) -> None:
        """Make a step with the gradients that are in the parameters' `grad`."""
        self._pass(float(self._group["lr"]))


class _CompiledPass:
    """A function of parameters, gradients, factors that change from step to step, and arguments that do not."""

    def __init__(self, optimizer: Optimizer, function: Callable[..., None], arguments: list[Any], factors: int) -> None:
        self._optimizer, self._arguments = optimizer, arguments
        self._parameters: list[Tensor] = optimizer.param_groups[0]["params"]
        first = self._parameters[0]
        self._factors = torch.zeros(factors, dtype=first.dtype, device=first.device)
        self._compiled = compile_once(function)

    @torch.no_grad()
    def __call__(self, *factors: float) -> None:
        self._factors.copy_(torch.tensor(factors, dtype=torch.float64))
        gradients = [parameter.grad for parameter in self._parameters]
        self._compiled(self._parameters, gradients, self._factors, *self._arguments)
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # or a schedule takes it for unused


def compile_once(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function for the shapes that it is first called with, and must always be called with.

    The guards, which would ask at each call whether some eighty tensors are still what they were, are left out.
    """
    compiled: Callable[P, T] = torch.compile(  # type: ignore[call-overload]  # whose stubs lack isolate_recompiles
        function,
        fullgraph=True,
        dynamic=False,
        isolate_recompiles=True,  # several networks in a process share no limit
        options={
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
            "fallback_random": True,  # dropout masks as in eager mode
            "cpp_wrapper": True,  # kernels called from C++: a tenth of a step at batch 32
        },
    )
    return compiled


def _is_plain(optimizer: Optimizer, *extras: str) -> bool:
    groups = optimizer.param_groups
    cycles_momentum = "max_momentum" in groups[0]  # a schedule moves what the pass takes for constant
    return len(groups) == 1 and not cycles_momentum and not any(groups[0][name] for name in extras)


def _sgd_pass(p: list[Tensor], g: list[Tensor], factors: Tensor) -> None:
    torch._foreach_sub_(p, torch._foreach_mul(g, factors[0]))


def _nadam_pass(
    p: list[Tensor],
    g: list[Tensor],
    factors: Tensor,
    m: list[Tensor],
    v: list[Tensor],
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    of_gradient, of_mean, of_square = factors.unbind()
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - beta2)
    denominator = torch._foreach_mul(v, of_square)
    torch._foreach_sqrt_(denominator)
    torch._foreach_add_(denominator, eps)
    update = torch._foreach_mul(g, of_gradient)
    torch._foreach_add_(update, torch._foreach_mul(m, of_mean))
    torch._foreach_div_(update, denominator)
    torch._foreach_sub_(p, update)


def make_update(optimizer: Optimizer) -> Callable[[], Any]:
    """One of the passes above, or the optimizer's own step, by one call for all parameters where it has that."""
    for update in (NAdamUpdate, SGDUpdate):
        if update.supports(optimizer):
            return update(optimizer)
    for group in optimizer.param_groups:
        if group.get("fused", ...) is None and not group.get("foreach") and not optimizer.state:
            group["fused"] = True
        elif group.get("foreach", ...) is None:
            group["foreach"] = True
    return lambda: optimizer.step()


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
