"""Monte-Carlo dropout: many passes with dropout on, their mean, their spread and what they say of uncertainty.

Y. Gal, Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, https://arxiv.org/abs/1506.02142;
Y. Gal, "Uncertainty in Deep Learning", 2016, section 3.3.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

#: Rows of a pass: enough to fill the cores, few enough for the activations of a deep layer to stay in the cache.
ROWS = 2000


def dropout_modules(module: nn.Module) -> list[nn.Module]:
    """The modules inside of `module` that drop anything: torch's dropouts and ours, with p > 0."""
    return [m for m in module.modules() if isinstance(m, _DropoutNd) and m.p > 0]


@contextmanager
def mc_dropout(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context dropout is on and everything else, batch normalization above all, in evaluation mode.

    The previous modes return at the end, also after an exception.

    Raises:
        ValueError: If `module` has no dropout.
    """
    dropouts = dropout_modules(module)
    if not dropouts:
        raise ValueError(
            "Monte-Carlo dropout has nothing to sample: expected a network with a dropout of p > 0, received none"
        )
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        for dropout in dropouts:
            dropout.train()
        yield module
    finally:
        for m, training in modes:
            m.training = training


@dataclass(frozen=True)
class MCPrediction:
    """What the passes say of N examples and K classes.

    Args:
        mean: (N, K), the mean of the probabilities: the prediction.
        std: (N, K), their standard deviation over the passes (of the population, as the notebook prints it).
        expected_entropy: (N,), mean entropy of a pass, in nats: what more data could not remove.
        disagreement: (N,), share of the passes that do not vote for the most voted class (variation ratio).
        samples: (S, N, K), the probabilities of each pass, if they were asked for.
    """

    mean: Tensor
    std: Tensor
    expected_entropy: Tensor
    disagreement: Tensor
    samples: Tensor | None = None

    @property
    def predictive_entropy(self) -> Tensor:
        """(N,), entropy of the mean, in nats: all of the uncertainty."""
        return entropy(self.mean)

    @property
    def mutual_information(self) -> Tensor:
        """(N,), predictive minus expected entropy, in nats: the uncertainty about the weights (BALD)."""
        return (self.predictive_entropy - self.expected_entropy).clamp(min=0)


def entropy(probabilities: Tensor) -> Tensor:
    """Map (..., K) to the entropy (...), -Σ p log p, in nats."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)


@torch.no_grad()
def mc_predict(
    module: nn.Module,
    x: Tensor,
    samples: int = 100,
    batch: int = ROWS,
    seed: int | None = None,
    return_samples: bool = False,
) -> MCPrediction:
    """Predict `x` by the mean of `samples` passes of `module` with dropout on.

    What stands before the first dropout is computed once; what follows is run on as many examples, or repeats of
    them, at a time as fill `batch` rows. Memory does not grow with the number of samples, unless all are returned.

    Args:
        module: Maps (N, ...) to logits (N, K). An `nn.Sequential`, or a module with `as_sequential` as `DeepMLP` has,
            is split at its first dropout; any other is run as a whole.
        x: (N, ...), on the module's device.
        samples: Number of passes, S.
        batch: Rows of a pass.
        seed: Seed of the masks; the global generators are then left as they were. It holds for the same `batch`.
        return_samples: Whether to keep the (S, N, K) probabilities of every pass.

    Raises:
        ValueError: If there is no dropout, or `samples` or `batch` is below 1.
    """
    if samples < 1 or batch < 1:
        raise ValueError(
            f"nothing to sample: expected samples >= 1 and batch >= 1, received samples={samples}, batch={batch}"
        )
    devices = range(torch.cuda.device_count())  # manual_seed seeds all of them
    with mc_dropout(module), torch.random.fork_rng(devices) if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        prefix, suffix = split_at_first_dropout(module)

        def probabilities(rows: Tensor) -> Tensor:
            logits: Tensor = suffix(rows)
            return logits.float().softmax(-1)

        parts = [_predict_part(probabilities, prefix(part), samples, batch, return_samples) for part in x.split(batch)]
    return MCPrediction(
        mean=torch.cat([part.mean for part in parts]),
        std=torch.cat([part.std for part in parts]),
        expected_entropy=torch.cat([part.expected_entropy for part in parts]),
        disagreement=torch.cat([part.disagreement for part in parts]),
        samples=torch.cat([part.samples for part in parts if part.samples is not None], 1) if return_samples else None,
    )


def split_at_first_dropout(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Split `module` into what is the same in every pass and what is not."""
    layers = _flatten(module)
    first = next(i for i, layer in enumerate(layers) if dropout_modules(layer))
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def _flatten(module: nn.Module) -> list[nn.Module]:
    """The layers that `module` runs one after another; itself, if that can't be known."""
    as_sequential = getattr(module, "as_sequential", None)
    if callable(as_sequential):
        module = as_sequential()
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flatten(child)]


def _predict_part(
    probabilities: Callable[[Tensor], Tensor], x: Tensor, samples: int, batch: int, return_samples: bool
) -> MCPrediction:
    """Predict from the activations `x`, (N, ...), before the first dropout, N at most `batch`."""
    n = len(x)
    at_once = min(samples, max(1, batch // max(n, 1)))
    kept, done = [], 0
    mean = m2 = votes = expected_entropy = torch.zeros(())
    while done < samples:
        r = min(at_once, samples - done)
        # Repeated anew, for a dropout in place overwrites its input.
        p = probabilities(x.repeat(r, *[1] * (x.ndim - 1))).unflatten(0, (r, n))  # (r, N, K)
        # Chan et al. 1979: the mean and the sum of squared deviations of two sets from those of each.
        p_mean = p.mean(0)
        delta = p_mean - mean
        mean = mean + delta * (r / (done + r))
        m2 = m2 + (p - p_mean).square_().sum(0) + delta.square_() * (done * r / (done + r))
        expected_entropy = expected_entropy + entropy(p).sum(0) / samples
        votes = votes + nn.functional.one_hot(p.argmax(-1), p.shape[-1]).sum(0)
        done += r
        if return_samples:
            kept.append(p)
    disagreement = 1 - votes.amax(-1) / samples
    std = (m2 / samples).sqrt()
    return MCPrediction(mean, std, expected_entropy, disagreement, torch.cat(kept) if return_samples else None)
