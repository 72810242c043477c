"""How a signal propagates through a deep network: its mean and spread after each layer, forward and backward.

X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
section 4; G. Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, https://arxiv.org/abs/1706.02515.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cifar_lightning.analysis.mc_dropout import dropout_modules


@dataclass(frozen=True)
class LayerSignal:
    """Statistics of a layer's output and of the gradient with respect to it.

    Means and standard deviations are taken per unit over the examples and then averaged over the units. They show
    whether *examples* can still be distinguished, which a large but constant activation does not do.

    Args:
        activation_mean: Mean of the layer's output.
        activation_std: Standard deviation of the layer's output.
        gradient_mean: Mean of the gradient of an example's loss with respect to that output.
        gradient_std: Standard deviation of that gradient.
        input_share: Share of the output's variance that comes from the input rather than from dropout masks: the
            correlation between two passes with different masks. 1 without dropout, about 0 if the input is lost.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP, measure_signals
        >>> network = DeepMLP(in_features=12, num_classes=3, hidden_sizes="4x16")
        >>> signals = measure_signals(network, network.hidden, torch.randn(50, 12), torch.arange(50) % 3)
        >>> 0.5 < signals[-1].activation_std < 2
        True
    """

    activation_mean: float
    activation_std: float
    gradient_mean: float
    gradient_std: float
    input_share: float

    def __repr__(self) -> str:
        numbers = (f"{name}={value:.3g}" for name, value in vars(self).items())
        return f"LayerSignal({', '.join(numbers)})"


def measure_signals(
    network: nn.Module, layers: Iterable[nn.Module], inputs: Tensor, labels: Tensor
) -> list[LayerSignal]:
    """Measure the outputs of `layers` and the gradients of the cross-entropy with respect to them.

    The network runs in its current mode: in training mode, dropout is on and batch normalization uses batch
    statistics. Nothing changes: gradients, running statistics, mode and random generators are restored. Values outside
    the range of the dtype are reported as they are: 0, infinite or NaN.

    Args:
        network: Maps inputs (N, ...) to logits (N, K).
        layers: Modules within the network, such as `net.hidden` of a `DeepMLP` or the ReLUs of any network.
        inputs: (N, ...), floating, as the network expects them.
        labels: (N,), integers.

    Returns:
        A signal for each call of a layer, in call order.

    Raises:
        ValueError: If the network calls none of the layers.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP, measure_signals
        >>> network = DeepMLP(in_features=12, num_classes=3, hidden_sizes="4x16")
        >>> signals = measure_signals(network, network.hidden, torch.randn(50, 12), torch.arange(50) % 3)
        >>> len(signals), signals[0].input_share
        (4, 1.0)
    """
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    copies = 2 if dropout_modules(network) else 1  # two passes with other masks, as one with twice the rows
    x = inputs.detach().repeat(copies, *[1] * (inputs.ndim - 1)).requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # which batch norm overwrites
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            logits = functional_call(network, buffers, (x,))
            # The sum: an example's gradient should not depend on how many others are measured with it.
            loss = F.cross_entropy(logits, labels.repeat(copies), reduction="sum")
            if not outputs:
                raise ValueError("nothing to measure: expected layers that the network calls, got none")
            gradients = torch.autograd.grad(loss, outputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        LayerSignal(*_mean_and_std(output), *_mean_and_std(gradient), _correlation(*output.chunk(copies)))
        for output, gradient in zip(outputs, gradients, strict=True)
    ]


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    units = values.detach().flatten(1).double()  # (N, units); squares of small float32 numbers need float64's range
    return units.mean().item(), units.std(0, correction=0).mean().item()


def _correlation(first: Tensor, second: Tensor | None = None) -> float:
    """Of two passes over the same examples, unit by unit: Σ cov / Σ var; 1 if there is only one."""
    if second is None:
        return 1.0
    a, b = (part.detach().flatten(1).double() for part in (first, second))
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


@torch.no_grad()
def first_layer_not_finite(module: nn.Module, x: Tensor) -> str:
    """The name of the first layer in `module` with an infinite or NaN output for `x`; "" if there is none.

    The module is called as it is; in training mode, batch norm updates its running statistics.
    """
    found: list[str] = []

    def look(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    layers = [(name, layer) for name, layer in module.named_modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(partial(look, name)) for name, layer in layers]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    return next(iter(found), "")
