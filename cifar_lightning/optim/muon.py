"""Muon for the matrices of hidden layers, together with AdamW for all other parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.errors import unknown_name

#: Coefficients a, b and c of a Newton-Schulz step X <- a X + b (X X^T) X + c (X X^T)^2 X, from Jordan et al. 2024.
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
#: Root mean square of AdamW's typical update, in units of the learning rate (Liu et al. 2025, section 2.2).
RMS_OF_ADAMW = 0.2
#: Matrices of more elements than this are made orthogonal one at a time.
LARGE = 2**17

#: Number of Newton-Schulz steps on Gram matrices alone. Rounding to bfloat16 would grow in more than three.
STEPS_ON_GRAM = 3

#: Precision of the Newton-Schulz steps.
Precision = Literal["bfloat16", "float32"]
Group = dict[str, Any]


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for hidden matrices, and AdamW (Loshchilov and Hutter 2019) for the rest.

    Muon makes the update of a matrix W orthogonal, so that it changes the layer's output by the same amount in all
    directions. With G the gradient, M its running mean, mu the momentum and lambda the weight decay:

        M <- mu M + (1 - mu) G
        W <- (1 - lr lambda) W - 0.2 sqrt(max(m, n)) lr O,  where O = orthogonalize((1 - mu) G + mu M)

    for a matrix of m rows and n columns. The factor before O gives the update the size of AdamW's, so both methods
    share a learning rate (Liu et al. 2025, https://arxiv.org/abs/2502.16982, equation 4). AdamW updates the last
    matrix, which is that of the output layer, with the same weight decay, and everything else without any.

    It updates matrices as `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`, but small
    ones of one shape all at once.

    Args:
        params: The parameters in the network's order, named or not, or groups of them. A group may say with
            `orthogonalize`, a bool, whether Muon or AdamW updates it; then it is not split, and all of it decays.
        lr: Learning rate.
        weight_decay: Factor lambda of the decay of matrices.
        momentum: Muon's mu.
        ns_steps: Number of Newton-Schulz steps to make an update orthogonal.
        precision: Precision of these steps: bfloat16, as its authors use, or float32, which is faster on processors
            without arithmetic in bfloat16.
        betas: AdamW's coefficients.
        eps: AdamW's epsilon.

    Raises:
        ValueError: If a value is out of range, or if a group with `orthogonalize` has parameters that are no matrices.

    Example:
        >>> from cifar_lightning import DeepMLP, MuonAdamW
        >>> optimizer = MuonAdamW(DeepMLP(hidden_sizes="3x100").parameters(), lr=2e-3)
        >>> [(group["orthogonalize"], len(group["params"])) for group in optimizer.param_groups]
        [(True, 3), (False, 1), (False, 4)]
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        precision: Precision = "bfloat16",
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if precision not in get_args(Precision):
            raise unknown_name("precision", precision, get_args(Precision))
        for name, value, is_right, right in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
            ("ns_steps", ns_steps, ns_steps >= 1, "at least 1"),
            ("betas", betas, all(0 <= beta < 1 for beta in betas), "in [0, 1)"),
            ("eps", eps, eps > 0, "positive"),
        ):
            if not is_right:
                raise ValueError(f"{name} must be {right}, got {value}")
        defaults: Group = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}
        defaults |= {"precision": precision, "betas": tuple(betas), "eps": eps}
        super().__init__(_split(list(params)), defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as when layers are unfrozen. Unless it has `orthogonalize`, Muon updates all its matrices."""
        for group in _split_group(param_group | {"params": _as_list(param_group["params"])}, output=None):
            shapes = [tuple(parameter.shape) for parameter in map(_tensor, group["params"])]
            if group["orthogonalize"] and any(len(shape) != 2 for shape in shapes):
                raise ValueError(
                    "only matrices can be made orthogonal: expected parameters of two dimensions, or orthogonalize "
                    f"False, got the shapes {shapes}"
                )
            super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                add_state(self.state[parameter], parameter, group["orthogonalize"])
                self.state[parameter]["step"] += 1
            if group["orthogonalize"]:
                self._step_muon(group, parameters)
            elif parameters:
                self._step_adamw(group, parameters)
        return loss

    def _step_muon(self, group: Group, parameters: Sequence[Tensor]) -> None:
        lr, mu, mixed = float(group["lr"]), group["momentum"], []
        for parameter in parameters:
            assert parameter.grad is not None, "only those with a gradient come here"
            mean = self.state[parameter]["exp_avg"].lerp_(parameter.grad, 1 - mu)
            mixed.append(parameter.grad.lerp(mean, mu))
        directions = find_directions(mixed, group["ns_steps"], group["precision"])
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).sub_(direction, alpha=lr)

    def _step_adamw(self, group: Group, parameters: Sequence[Tensor]) -> None:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None, "only those with a gradient come here"
            mean, square, t = state["exp_avg"], state["exp_avg_sq"], float(state["step"])
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            divisor = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
            parameter.mul_(1 - lr * group["weight_decay"]).addcdiv_(mean, divisor, value=-lr / (1 - beta1**t))


def add_state(state: dict[str, Any], parameter: Tensor, orthogonalize: bool) -> None:
    """Create a parameter's state, if it has none: steps, running mean, and for AdamW the running mean square."""
    if not state:
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)  # bfloat16 can't count beyond 256
        state |= {"step": torch.zeros((), dtype=wide), "exp_avg": torch.zeros_like(parameter)}
        if not orthogonalize:
            state["exp_avg_sq"] = torch.zeros_like(parameter)


def find_directions(gradients: Sequence[Tensor], ns_steps: int, precision: Precision) -> list[Tensor]:
    """Muon's directions 0.2 sqrt(max(m, n)) O for smoothed gradients (..., m, n)."""
    dtype, directions = getattr(torch, precision), list(gradients)
    for indices in _group(gradients):
        alike = [gradients[index] for index in indices]
        # (A product of matrices is faster than a batch of one.)
        together = torch.stack(alike) if len(alike) > 1 else alike[0]
        scale = RMS_OF_ADAMW * math.sqrt(max(together.shape[-2:]))
        scaled = orthogonalize(together.to(dtype), ns_steps).to(together.dtype) * scale
        for index, direction in zip(indices, scaled if len(alike) > 1 else [scaled], strict=True):
            directions[index] = direction
    return directions


def _group(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Indices of matrices to work on at once: small ones by shape, and each large one alone, as it fills the cache."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        alone = (index,) if matrix.numel() > LARGE else ()
        groups.setdefault((*matrix.shape, *alone), []).append(index)
    return list(groups.values())


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of matrices (..., m, n) near 1, between 0.7 and 1.2, and keep the singular vectors.

    Newton-Schulz steps do this with matrix products alone. They reach all singular values that are not much smaller
    than the largest: five steps raise one of 0.002 times the matrix's norm to 0.7.

    A step is X <- P X, where P is a polynomial of the Gram matrix X X^T. For m much smaller than n, several steps are
    taken on Gram matrices alone, which are smaller than X: they turn into P (X X^T) P, and the product of all P is
    applied to X at the end (Dao et al. 2026, https://tridao.me/blog/2026/gram-newton-schulz).
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if is_tall else matrices  # the smaller products
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    at_once = STEPS_ON_GRAM if x.shape[-1] >= 2 * x.shape[-2] else 1
    for begin in range(0, steps, at_once):
        gram = x @ x.mT
        product = p = _polynomial(gram)
        for _ in range(begin + 1, min(begin + at_once, steps)):
            gram = p @ gram @ p
            p = _polynomial(gram)
            product = p @ product
        x = product @ x
    return x.mT if is_tall else x


def _polynomial(gram: Tensor) -> Tensor:
    """P = a I + b G + c G^2 of Gram matrices G (..., m, m)."""
    a, b, c = NEWTON_SCHULZ
    p = b * gram + c * gram @ gram
    p.diagonal(dim1=-2, dim2=-1).add_(a)  # instead of a X, which is larger
    return p


def _split(params: Sequence[Any]) -> list[Group]:
    """Groups by kind of update. The last matrix is taken for the output layer's."""
    groups: list[Group] = list(params) if params and isinstance(params[0], dict) else [{"params": params}]
    groups = [group | {"params": _as_list(group["params"])} for group in groups]
    unsaid = [each for group in groups if "orthogonalize" not in group for each in group["params"]]
    output = next((parameter for parameter in map(_tensor, reversed(unsaid)) if parameter.ndim == 2), None)
    return [part for group in groups for part in _split_group(group, output)]


def _split_group(group: Group, output: Tensor | None) -> list[Group]:
    """A group's hidden matrices, the output matrix, and vectors, which do not decay; itself if it says what it is."""
    if "orthogonalize" in group:
        return [group]
    hidden: list[Any] = []
    last: list[Any] = []
    vectors: list[Any] = []
    for each in group["params"]:
        parameter = _tensor(each)
        (last if parameter is output else hidden if parameter.ndim == 2 else vectors).append(each)
    parts: list[Group] = [
        {**group, "params": hidden, "orthogonalize": True},
        {**group, "params": last, "orthogonalize": False},
        {**group, "params": vectors, "orthogonalize": False, "weight_decay": 0.0},
    ]
    return [part for part in parts if part["params"]]


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _tensor(parameter: Any) -> Tensor:
    """A parameter, which may come with its name."""
    tensor: Tensor = parameter[1] if isinstance(parameter, tuple) else parameter
    return tensor
