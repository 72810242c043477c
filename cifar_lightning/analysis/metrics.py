"""What is measured of a classifier, from its logits while it trains and from its probabilities when it is evaluated."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from cifar_lightning.analysis.mc_dropout import entropy

#: Bins of equal width for reliability diagrams and the expected calibration error, as in Guo et al. 2017.
BINS = 15


class MeanMetric(Metric):
    """The mean over examples of what `terms` gives for each."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The term (B,) of each example, from predictions (B, K) and a target (B,), its label unless said otherwise."""

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Add a batch: predictions (B, K), target (B,)."""
        self.total += self.terms(predictions, target).sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """The mean over all batches."""
        return self.total / self.count


class CrossEntropy(MeanMetric):
    """Mean cross-entropy, in nats, of logits (B, K) against labels (B,)."""

    higher_is_better = False

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-log softmax(logits)[label]."""
        return F.cross_entropy(predictions, target, reduction="none")


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood, in nats, of probabilities (B, K) against labels (B,)."""

    higher_is_better = False

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-log p[label], with p no smaller than the dtype's smallest normal number."""
        smallest = torch.finfo(predictions.dtype).tiny
        return -predictions.gather(1, target[:, None]).squeeze(1).clamp(min=smallest).log()


class BrierScore(MeanMetric):
    """Mean Brier score (1950) of probabilities (B, K) against labels (B,): Σ_k (p_k - [k = label])², from 0 to 2."""

    higher_is_better = False

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The squared distance of each example from its label's corner."""
        return (predictions - F.one_hot(target, predictions.shape[1])).square().sum(1)


class PredictiveEntropy(MeanMetric):
    """Mean entropy, in nats, of probabilities (B, K); the target (B,) is not looked at."""

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-Σ p log p."""
        return entropy(predictions)


class MutualInformation(MeanMetric):
    """Mean mutual information, in nats, of Monte-Carlo samples: their mean (B, K) and, as target, their mean entropy.

    That is predictive minus expected entropy (Houlsby et al. 2011, BALD): what the samples disagree about.
    """

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """H(mean p) - mean H(p)."""
        return entropy(predictions) - target


class Reliability(Metric):
    """Confidence and accuracy in bins of confidence, from probabilities (B, K) and labels (B,).

    Args:
        bins: Number of bins of equal width.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(self, bins: int = BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("counts", "confidence", "correct"):
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        confidence, predicted = probabilities.max(1)
        bins = len(self.counts)
        index = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
        self.counts.index_add_(0, index, torch.ones_like(confidence))
        self.confidence.index_add_(0, index, confidence)
        self.correct.index_add_(0, index, (predicted == labels).to(confidence))

    def compute(self) -> dict[str, Tensor]:
        """Counts, mean confidence and accuracy of each bin, each (bins,); 0 where a bin is empty."""
        counts = self.counts.clamp(min=1)
        return {
            "counts": self.counts,
            "confidence": self.confidence / counts,
            "accuracy": self.correct / counts,
        }


class AURC(Metric):
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017), from probabilities (B, K) and labels (B,).

    The error rate among the n most confident predictions, averaged over n: what is to be expected of a classifier
    that may decline the rest. 0 is best.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    confidence: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        confidence, predicted = probabilities.max(1)
        self.confidence.append(confidence)
        self.wrong.append((predicted != labels).float())

    def compute(self) -> Tensor:
        """The mean over coverages of the error rate."""
        wrong = dim_zero_cat(self.wrong)[dim_zero_cat(self.confidence).argsort(descending=True, stable=True)]
        return (wrong.cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)).mean()


def classification_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """Loss, accuracy and top-3 accuracy of logits (B, num_classes) against labels (B,)."""
    return _collect(num_classes, {"loss": CrossEntropy()}, prefix)


def evaluation_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """Accuracies, NLL, Brier score, ECE, AURC and entropy of probabilities (B, num_classes) against labels (B,)."""
    metrics: dict[str, Metric] = {
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ece": MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1", validate_args=False),
        "aurc": AURC(),
        "entropy": PredictiveEntropy(),
    }
    return _collect(num_classes, metrics, prefix)


def _collect(num_classes: int, metrics: dict[str, Metric], prefix: str) -> MetricCollection:
    accuracies: dict[str, Metric] = {
        name: MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)
        for name, k in (("accuracy", 1), ("top3_accuracy", 3))
    }
    # torchmetrics would merge metrics whose first states happen to be equal, as accuracy's and top-3's can be.
    return MetricCollection({**metrics, **accuracies}, prefix=prefix, compute_groups=False)
