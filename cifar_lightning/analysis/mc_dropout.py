"""Monte-Carlo dropout: many passes with dropout on, their mean, their spread and what they say of uncertainty.

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

#: Rows of a pass: enough to fill the cores, few enough for the activations of a deep layer to stay in the cache.
ROWS = 2000


def dropout_modules(module: nn.Module) -> list[nn.Module]:
    """The modules of torch and ours inside `module` that drop something, with p > 0.

    They are the dropout layers, and what has a dropout of its own: `MultiheadAttention`, `LSTM`, `GRU`, `RNN`, and
    `TransformerEncoderLayer`, whose fast path ignores the dropouts inside.
    """
    return [m for m in module.modules() if drops(m)]


@contextmanager
def mc_dropout(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context dropout is on, and everything else, batch normalization above all, in evaluation mode.

    Dropout is found in torch's modules and ours by their type. Any other module is tried out when it is first called
    within the context: it is put into training mode if that makes it draw more random numbers, as by
    `F.dropout(x, p, self.training)`. The trials cost a few passes, during which hooks are called too. torch's `RReLU`
    stays in evaluation mode, for its noise is not dropout.

    The previous modes return at the end, also after an exception.

    Raises:
        ValueError: If `module` has no dropout, has dropout that can't be switched on because it is in TorchScript, or
            because the module that it is part of also changes its buffers in training mode.

    Warns:
        UserWarning: If a module of neither torch's nor ours does not run in training mode.

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
        for part in parts:  # the flags alone: `eval` may be overridden, and do more than can be undone
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
    return ValueError("Monte-Carlo dropout has nothing to sample: expected a network with a dropout of p > 0, got none")


@dataclass(frozen=True)
class MCPrediction:
    """What the passes say of N examples and K classes.

    Args:
        mean: (N, K), the mean of the probabilities: the prediction.
        std: (N, K), their standard deviation over the passes (of the population, as the notebook prints it).
        expected_entropy: (N,), mean entropy of a pass, in nats: what more data could not remove.
        disagreement: (N,), share of the passes that do not vote for the most voted class (variation ratio).
        samples: (S, N, K), the probabilities of each pass, if they were asked for.

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

    The layers before the first dropout run once, where the network is a row of layers of torch's and ours, and no
    hooks stand on the row itself. The rest runs on as many examples, or repeats of them, at a time as fill `batch`
    rows. Any other network is run as a whole. Memory does not grow with the number of samples, unless all are returned.

    Args:
        module: Maps (N, ...) to logits (N, K), K > 1, or to a dict or an object with logits as its `logits`. An
            `nn.Sequential`, `DeepMLP` or `MLPClassifier` is split at its first dropout. Others see two examples before
            the first pass, to find their dropout (see `mc_dropout`).
        x: (N, ...), on the module's device.
        samples: Number of passes, S.
        batch: Rows of a pass.
        seed: Seed of the masks; the global generators are then left as they were. It holds for the same `batch`.
        return_samples: Whether to keep the (S, N, K) probabilities of every pass.

    Raises:
        ValueError: If there is no dropout or some that can't be switched on, `samples` or `batch` is below 1, or the
            output is something else than logits.

    Example:
        >>> import torch
        >>> from cifar_lightning import DeepMLP, mc_predict
        >>> model = DeepMLP(in_features=12, num_classes=3, hidden_sizes=[8], dropout="alpha")
        >>> prediction = mc_predict(model, torch.randn(5, 12), samples=10, seed=0)
        >>> prediction.mean.shape, prediction.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    if samples < 1 or batch < 1:
        raise ValueError(
            f"nothing to sample: expected samples >= 1 and batch >= 1, got samples={samples}, batch={batch}"
        )
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
