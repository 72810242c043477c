"""Alpha dropout: dropout that preserves the mean and variance of activations in a self-normalizing network.

G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter, "Self-Normalizing Neural Networks", NeurIPS 2017,
section 3, https://arxiv.org/abs/1706.02515.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", float, Tensor)

#: SELU's λ and α (Klambauer et al. 2017, equation 14).
SELU_LAMBDA = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717

#: α' = -λα, SELU's limit at minus infinity: the value of a dropped unit.
ALPHA_PRIME = -SELU_LAMBDA * SELU_ALPHA


def check_probability(p: float) -> float:
    """Return `p` unchanged if 0 <= p < 1.

    Raises:
        ValueError: If it is not. NaN and 1 are rejected too: dropping everything leaves nothing to rescale.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability must be in [0, 1), got {p}")
    return p


def affine_correction(p: T) -> tuple[T, T]:
    """The a and b for which a(xd + α'(1-d)) + b has mean 0 and variance 1 if x has, with d ~ Bernoulli(1-p).

    With q = 1-p:  a = (q + α'² q(1-q))^(-1/2),  b = -a (1-q) α'  (Klambauer et al. 2017, section 3).

    Args:
        p: A number, or a tensor of any shape.
    """
    q = 1 - p
    a = (q + ALPHA_PRIME**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * ALPHA_PRIME
    return a, b


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Set each element of x, the input, to α' with probability `p`, then rescale: y = a(xd + α'(1-d)) + b.

    Inputs with mean 0 and variance 1 keep both. Takes the same arguments as `torch.nn.functional.alpha_dropout`.
    The backward pass needs one byte per element, for the mask.

    Args:
        input: Any shape and device; a real floating dtype, unless nothing is dropped.
        p: Probability of dropping an element, 0 <= p < 1.
        training: Whether to drop at all; if False, the input itself is returned.
        inplace: Whether to overwrite the input, which then must not be a leaf that requires a gradient.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ValueError: If `p` is out of range, or if there is something to drop and the dtype is not real and floating.

    Example:
        >>> import torch
        >>> from cifar_lightning import alpha_dropout
        >>> alpha_dropout(torch.zeros(2), p=0.5, training=False)
        tensor([0., 0.])
    """
    check_probability(p)
    if not training or p == 0:
        return input
    if not input.is_floating_point():
        raise ValueError(f"alpha_dropout needs an input with a real floating dtype, got {input.dtype}")
    a, b = affine_correction(p)
    # float32 noise for every dtype: bfloat16's 8 bits are too few to drop at exactly the rate p.
    dropped = torch.rand_like(input, dtype=torch.float32) < p
    if inplace:
        return input.mul_(a).add_(b).masked_fill_(dropped, a * ALPHA_PRIME + b)
    return torch.where(dropped, a * ALPHA_PRIME + b, a * input + b)


class AlphaDropout(nn.AlphaDropout):
    """`alpha_dropout` as a module, active in training mode only.

    It subclasses `torch.nn.AlphaDropout`, so uncertainty libraries recognize it as a dropout layer.

    Args:
        p: Probability of dropping an element, 0 <= p < 1.
        inplace: Whether to overwrite the input.

    Raises:
        ValueError: If `p` is out of range.

    Example:
        >>> import torch
        >>> from cifar_lightning import AlphaDropout
        >>> y = AlphaDropout(p=0.5)(torch.randn(100_000))
        >>> bool(abs(y.mean()) < 0.05 and abs(y.std() - 1) < 0.05)
        True
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(check_probability(p), inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        return alpha_dropout(input, self.p, self.training, self.inplace)
