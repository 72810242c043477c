"""Temperature scaling, which calibrates the probabilities of a trained network with a single parameter.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599.
"""

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """Divide logits by a temperature, which is 1 until `fit` is called and is saved with the module."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Map (B, K) to (B, K)."""
        return logits / self.value

    @torch.no_grad()
    def fit(self, logits: Tensor, labels: Tensor) -> float:
        """Set the temperature to the one with the lowest cross-entropy, and return it.

        Args:
            logits: (N, K), before temperature scaling, of images outside the training set.
            labels: (N,).
        """
        self.value.fill_(fit_temperature(logits, labels))
        return self.value.item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimizes the cross-entropy between logits / T, (N, K), and labels, (N,).

    Newton's method on β = 1/T, in which L(β) = mean(log Σ exp(βz) - βz_y) is convex:
    L' = mean(E_p z - z_y) and L'' = mean(Var_p z), with p = softmax(βz).

    Raises:
        ValueError: If a logit is not finite, since no temperature would then be the best.
    """
    z = logits.detach().double()
    if broken := int((~z.isfinite()).any(1).sum()):
        raise ValueError(
            f"no temperature fits these predictions: expected finite logits for all {len(z):,} images, got some "
            f"that are infinite or NaN for {broken:,} of them"
        )
    z_label = z.gather(1, labels[:, None]).squeeze(1)
    beta = 1.0
    for _ in range(100):
        p = (beta * z).softmax(1)
        mean = (p * z).sum(1)
        slope = (mean - z_label).mean().item()
        curvature = ((p * z.square()).sum(1) - mean.square()).mean().item()
        if curvature <= 0 or abs(slope) < 1e-10:
            break
        # β is at most halved or doubled: far from the minimum, a Newton step could make it negative.
        beta = min(max(beta - slope / curvature, beta / 2), 2 * beta)
    return 1 / beta
