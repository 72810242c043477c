"""What is measured of a classifier, from its logits while it trains and from its probabilities when it is evaluated."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from cifar_lightning.analysis.exact_metric import (
    ExactMetric,
    MeanMetric,
    check_labels,
    check_predictions,
    check_probabilities,
)
from cifar_lightning.analysis.mc_dropout import entropy

#: Bins of equal width for reliability diagrams and the expected calibration error, as in Guo et al. 2017.
BINS = 15


class CrossEntropy(MeanMetric):
    """Mean cross-entropy, in nats, of logits (B, K) against labels (B,)."""

    higher_is_better = False

    def check_predictions(self, predictions: Tensor) -> None:
        """Raise a ValueError unless they are (B, K) and floating."""
        check_predictions(self, predictions)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-log softmax(logits)[label]."""
        return F.cross_entropy(predictions, target, reduction="none")


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood, in nats, of probabilities (B, K) against labels (B,).

    A probability counts as no smaller than 1.2e-38, float32's smallest normal number, so that one 0 does not make the
    mean infinite: it costs 87.3.
    """

    higher_is_better = False

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-log p[label]."""
        smallest = torch.finfo(torch.float32).tiny
        return -predictions.gather(1, target[:, None]).squeeze(1).clamp(min=smallest).log()


class BrierScore(MeanMetric):
    """Mean Brier score (1950) of probabilities (B, K) against labels (B,): Σ_k (p_k - [k = label])², from 0 to 2."""

    higher_is_better = False

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The squared distance of each example from its label's corner."""
        return (predictions - F.one_hot(target, predictions.shape[1])).square().sum(1)


class TopKAccuracy(MeanMetric):
    """Share of examples whose label is among the k classes with the highest scores (B, K).

    Of equal scores that of the first class counts as the highest, as in `argmax`. (`torch.topk`, which torchmetrics
    uses, takes any of them, so that its top-3 accuracy can be lower than its accuracy.) A score that is NaN is higher
    than any number, as in `argmax`, but never right.

    Args:
        k: Number of classes.

    Raises:
        ValueError: If k is below 1.
    """

    higher_is_better = True

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k

    def check_predictions(self, predictions: Tensor) -> None:
        """Raise a ValueError unless they are (B, K) and floating."""
        check_predictions(self, predictions)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """1 where fewer than k classes come before the label, and 0 elsewhere."""
        score = predictions.gather(1, target[:, None])
        classes = torch.arange(predictions.shape[1], device=predictions.device)
        before = ~(predictions <= score) | (predictions == score) & (classes < target[:, None])
        return (before.sum(1) < self.k) & ~score.squeeze(1).isnan()


class PredictiveEntropy(MeanMetric):
    """Mean entropy, in nats, of probabilities (B, K); the target is not looked at."""

    def check(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return any `target`."""
        return target

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-Σ p log p."""
        return entropy(predictions)


class MutualInformation(MeanMetric):
    """Mean mutual information, in nats, of Monte-Carlo samples: their mean (B, K) and, as target, their mean entropy.

    That is predictive minus expected entropy (Houlsby et al. 2011, BALD): what the samples disagree about.
    """

    def check(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return `target`, (B,), in the dtype of the sums.

        Raises:
            ValueError: If it has another shape, or is not floating.
        """
        if target.shape != predictions.shape[:1] or not target.is_floating_point():
            raise ValueError(
                f"MutualInformation: wrong target: expected the mean entropy of the samples of each example, of shape "
                f"({len(predictions)},) and a floating dtype; got {target.dtype} of shape {tuple(target.shape)}"
            )
        return target.to(self.dtype)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """H(mean p) - mean H(p)."""
        return entropy(predictions) - target


class Reliability(ExactMetric):
    """Confidence and accuracy in bins of confidence, from probabilities (B, K) and labels (B,).

    Bin i of n holds the confidences in (i/n, (i+1)/n] (Guo et al. 2017, equation 3), and the first one 0 too. The edges
    are rounded to the dtype of the probabilities: 0.2 lies at the edge of 0.2 in any precision.

    Args:
        bins: Number of bins of equal width.
    """

    counts: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(self, bins: int = BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.add_count("counts", bins)
        self.add_count("correct", bins)
        self.add_sum("confidence", bins)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: For wrong shapes, dtypes or labels.
        """
        check_probabilities(self, probabilities)
        labels = check_labels(self, probabilities, labels)
        confidence, right = _judge(probabilities, labels)
        bins = len(self.counts)
        edges = torch.arange(1, bins, dtype=self.dtype, device=confidence.device) / bins
        confidence, edges = confidence.to(self.dtype), edges.to(confidence.dtype).to(self.dtype)
        index = torch.bucketize(confidence, edges)
        self.counts = self.counts + index.bincount(minlength=bins)
        self.correct = self.correct + index[right].bincount(minlength=bins)
        self.confidence = self.confidence.index_add(0, index, confidence)

    def compute(self) -> Any:
        """Counts, mean confidence and accuracy of each bin, each (bins,); 0 where a bin is empty."""
        counts = self.counts.clamp(min=1)
        return {
            "counts": self.counts,
            "confidence": (self.confidence / counts).float(),
            "accuracy": (self.correct.to(self.dtype) / counts).float(),
        }


class ExpectedCalibrationError(Reliability):
    """Mean gap between the accuracy and the confidence of the bins of `Reliability`, weighted by their counts."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Σ_b |correct_b - Σ confidence_b| / N."""
        return ((self.correct.to(self.dtype) - self.confidence).abs().sum() / self.counts.sum()).float()


class AURC(ExactMetric):
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017), from probabilities (B, K) and labels (B,).

    The error rate among the n most confident predictions, averaged over n: what is to be expected of a classifier
    that may decline the rest. 0 is best. Nothing says which of equally confident predictions comes first, so the mean
    over all their orders is taken: each of them counts as wrong by the share of them that is,

        AURC = 1/N Σ_n 1/n Σ_(i <= n) e_i,  with e_i the error rate among the predictions as confident as the i-th.
    """

    higher_is_better = False
    confidence: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: For wrong shapes, dtypes or labels.
        """
        check_probabilities(self, probabilities)
        labels = check_labels(self, probabilities, labels)
        confidence, right = _judge(probabilities, labels)
        # In the metric's own dtype, in which a rank without examples takes part.
        self.confidence.append(confidence.to(self.dtype))
        self.wrong.append((~right).to(self.dtype))

    def compute(self) -> Tensor:
        """The mean over coverages of the error rate; NaN for no examples."""
        if len(self.confidence) == 0:  # a list, or a tensor of all ranks
            return torch.tensor(torch.nan)
        confidence, order = dim_zero_cat(self.confidence).sort(descending=True)
        wrong = dim_zero_cat(self.wrong)[order]
        _, group, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
        rate = torch.zeros_like(sizes, dtype=wrong.dtype).index_add(0, group, wrong) / sizes
        risks: Tensor = rate[group].cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)
        return risks.mean().float()


def _judge(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidences (B,), and whether each prediction is right (B,): one that is NaN never is."""
    confidence, predicted = probabilities.max(1)
    return confidence, (predicted == labels) & ~confidence.isnan()


def classification_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """Loss, accuracy and top-3 accuracy of logits (B, num_classes) against labels (B,)."""
    return _collect(num_classes, {"loss": CrossEntropy()}, prefix)


def evaluation_metrics(num_classes: int, prefix: str = "") -> MetricCollection:
    """Accuracies, NLL, Brier score, ECE, AURC and entropy of probabilities (B, num_classes) against labels (B,)."""
    metrics: dict[str, Metric] = {
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ece": ExpectedCalibrationError(),
        "aurc": AURC(),
        "entropy": PredictiveEntropy(),
    }
    return _collect(num_classes, metrics, prefix)


def _collect(num_classes: int, metrics: dict[str, Metric], prefix: str) -> MetricCollection:
    accuracies: dict[str, Metric] = {"accuracy": TopKAccuracy(), "top3_accuracy": TopKAccuracy(min(3, num_classes))}
    # torchmetrics would merge metrics whose first states happen to be equal, as accuracy's and top-3's can be.
    return MetricCollection({**metrics, **accuracies}, prefix=prefix, compute_groups=False)
