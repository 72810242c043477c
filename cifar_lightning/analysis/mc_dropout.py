"""Monte-Carlo dropout: many passes with dropout on, their mean and spread, and measures of uncertainty.

Y. Gal, Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, https://arxiv.org/abs/1506.02142;
Y. Gal, "Uncertainty in Deep Learning", 2016, section 3.3.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.analysis.chain import split_at_first_dropout
from cifar_lightning.analysis.probe import drops, fork_generators, generator_states, is_foreign, watch

__all__ = [
    "MCPrediction",
    "dropout_modules",
    "entropy",
    "mc_dropout",
    "mc_predict",
    "split_at_first_dropout",
]

#: Rows per pass: enough to use all cores, few enough to keep a layer's activations in the cache.
ROWS = 2000


def dropout_modules(module: nn.Module) -> list[nn.Module]:
    """The modules of torch and of this package inside `module` that drop something, with p > 0.

    These are dropout layers and modules with built-in dropout: `MultiheadAttention`, `LSTM`, `GRU`, `RNN`, and
    `TransformerEncoderLayer`, whose fast path ignores the dropout layers inside.
    """
    return [m for m in module.modules() if drops(m)]


@contextmanager
def mc_dropout(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context, dropout is on and everything else, such as batch normalization, is in evaluation mode.

    In modules of torch and of this package, dropout is found by type. Any other module is tested when it is first
    called within the context: it is put into training mode if that makes it draw more random numbers, as with
    `F.dropout(x, p, self.training)`. These tests cost a few passes, which also call hooks. torch's `RReLU` stays in
    evaluation mode, since its noise is not dropout.

    The previous modes are restored at the end, even after an exception.

    Raises:
        ValueError: If `module` has no dropout, or dropout that can't be switched on because it is in TorchScript or
            its module also changes its buffers in training mode.

    Warns:
        UserWarning: If a module from elsewhere does not run in training mode.

    Example:
        >>> import torch
        >>> from cifar_lightning import mc_dropout
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).eval()
        >>> with mc_dropout(model):
        ...     [part.training for part in model]
        [False, True]
    """
    parts = list(module.modules())
    _refuse_torchscript(module)
    if not any(drops(part) or is_foreign(part) for part in parts):
        raise _nothing_to_sample()
    modes = [(part, part.training) for part in parts]
    trials = watch(module)
    try:
        for part in parts:  # only the flags: `eval` may be overridden and do more than can be undone
            part.training = drops(part)
        yield module
    finally:
        for trial in trials:
            trial.remove()
        for part, training in modes:
            part.training = training


def _refuse_torchscript(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                "Monte-Carlo dropout can't find dropout in TorchScript: expected modules in Python, "
                f"got {name or 'the network'} ({type(part).__name__})"
            )


def _nothing_to_sample() -> ValueError:
    return ValueError("Monte-Carlo dropout has nothing to sample: expected a network with dropout, p > 0, got none")


@dataclass(frozen=True)
class MCPrediction:
    """A Monte-Carlo prediction for N examples and K classes.

    Args:
        mean: (N, K), the mean probabilities: the prediction.
        std: (N, K), their (population) standard deviation over the passes.
        expected_entropy: (N,), the mean entropy of a pass, in nats: uncertainty that more data could not remove.
        disagreement: (N,), the share of passes that do not vote for the most voted class (variation ratio).
        samples: (S, N, K), the probabilities of each pass, if requested.

    Example:
        >>> import torch
        >>> from cifar_lightning import MCPrediction
        >>> certain = torch.tensor([[1.0, 0.0]])
        >>> MCPrediction(certain, torch.zeros(1, 2), torch.zeros(1), torch.zeros(1)).mutual_information
        tensor([0.])
    """

    mean: Tensor
    std: Tensor
    expected_entropy: Tensor
    disagreement: Tensor
    samples: Tensor | None = None

    def __repr__(self) -> str:
        count, classes = self.mean.shape
        sizes = f"{count:,} examples, {classes} classes"
        kept = f", {len(self.samples):,} samples" if self.samples is not None else ""
        if not count:
            return f"MCPrediction({sizes}{kept})"
        confidence, information = self.mean.amax(-1).mean().item(), self.mutual_information.mean().item()
        return f"MCPrediction({sizes}{kept}: mean confidence {confidence:.3f}, mean MI {information:.3f} nats)"

    @property
    def predictive_entropy(self) -> Tensor:
        """(N,), entropy of the mean, in nats: the total uncertainty."""
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
    """Predict `x` with the mean of `samples` passes of `module` with dropout on.

    If the network is a sequence of layers from torch and this package without hooks, the layers before the first
    dropout run only once, and the rest runs on `batch` rows at a time, examples or repeats of them. Any other network
    runs as a whole. Memory does not grow with the number of samples unless they are returned.

    Args:
        module: Maps (N, ...) to logits (N, K), K > 1, or to a dict or object with `logits`. An `nn.Sequential`,
            `DeepMLP` or `MLPClassifier` is split at its first dropout. Other modules get two examples before the first
            pass, to find their dropout (see `mc_dropout`).
        x: (N, ...), on the module's device.
        samples: Number of passes, S.
        batch: Rows per pass.
        seed: Seed of the masks, for a given `batch`; the global generators are then restored.
        return_samples: Whether to return the (S, N, K) probabilities of all passes.

    Raises:
        ValueError: If there is no dropout, if it can't be switched on, if `samples` or `batch` is below 1, or if the
            output is not logits.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP, mc_predict
        >>> model = DeepMLP(in_features=12, num_classes=3, hidden_sizes=[8], dropout="alpha")
        >>> prediction = mc_predict(model, torch.randn(5, 12), samples=10, seed=0)
        >>> prediction.mean.shape, prediction.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    if samples < 1 or batch < 1:
        raise ValueError(f"samples and batch must be at least 1, got samples={samples}, batch={batch}")
    with mc_dropout(module), fork_generators() if seed is not None else nullcontext():
        prefix, suffix = split_at_first_dropout(module)

        def probabilities(rows: Tensor) -> Tensor:
            return _logits(suffix(rows), module, len(rows)).float().softmax(-1)

        if len(x) and any(map(is_foreign, module.modules())):
            with fork_generators():
                probabilities(prefix(x[:2].clone()))  # for the trials to take place, and on few rows
            if not any(part.training for part in module.modules()):
                raise _nothing_to_sample()
        if seed is not None:
            torch.manual_seed(seed)
        parts = []
        for rows in x.split(batch):
            before, activations = generator_states(), prefix(rows.clone())  # a layer may work in place
            if not all(map(torch.equal, before, generator_states())):  # a layer, or a hook of one, adds noise
                prefix, suffix, activations = nn.Identity(), module, rows
            parts.append(_predict_part(probabilities, activations, samples, batch, return_samples))
    return MCPrediction(
        mean=torch.cat([part.mean for part in parts]),
        std=torch.cat([part.std for part in parts]),
        expected_entropy=torch.cat([part.expected_entropy for part in parts]),
        disagreement=torch.cat([part.disagreement for part in parts]),
        samples=torch.cat([part.samples for part in parts if part.samples is not None], 1) if return_samples else None,
    )


def _logits(output: Any, module: nn.Module, rows: int) -> Tensor:
    """The logits (rows, K) in what `module` returned.

    Raises:
        ValueError: If they can't be told.
    """
    logits = output["logits"] if isinstance(output, Mapping) and "logits" in output else output
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor):
        received = f"a {type(output).__name__}"
    elif logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
        received = f"the shape {tuple(logits.shape)}"
    else:
        return logits
    raise ValueError(
        f"wrong output of {type(module).__name__}: expected logits of shape ({rows}, K), K > 1, as a tensor or as the "
        f"output's `logits`; got {received}"
    )


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
        # Repeated each time, since an in-place dropout overwrites its input.
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
