"""Metrics of a classifier: of its logits during training, and of its probabilities during evaluation."""

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

#: Number of equal-width bins in reliability diagrams and the expected calibration error, as in Guo et al. 2017.
BINS = 15


class CrossEntropy(MeanMetric):
    """Mean cross-entropy, in nats, of logits (B, K) against labels (B,)."""

    higher_is_better = False

    def check_predictions(self, predictions: Tensor) -> None:
        """Raise a ValueError unless the predictions have the shape (B, K) and a floating dtype."""
        check_predictions(self, predictions)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-log softmax(logits)[label]."""
        return F.cross_entropy(predictions, target, reduction="none")


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log-likelihood, in nats, of probabilities (B, K) against labels (B,).

    Probabilities are clamped to at least 1.2e-38, float32's smallest normal number, so a single 0 costs 87.3 instead of
    making the mean infinite.
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
        """The squared distance between each example's probabilities and its one-hot label."""
        return (predictions - F.one_hot(target, predictions.shape[1])).square().sum(1)


class TopKAccuracy(MeanMetric):
    """Share of examples whose label is among the k classes with the highest scores (B, K).

    Ties go to the class with the lowest index, as in `argmax`. (torchmetrics uses `torch.topk`, which breaks ties
    arbitrarily, so its top-3 accuracy can be lower than its accuracy.) A NaN score ranks above every number, as in
    `argmax`, but is never correct.

    Args:
        k: Number of top classes.

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
        """Raise a ValueError unless the predictions have the shape (B, K) and a floating dtype."""
        check_predictions(self, predictions)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """1 where fewer than k classes rank above the label, 0 elsewhere."""
        score = predictions.gather(1, target[:, None])
        classes = torch.arange(predictions.shape[1], device=predictions.device)
        before = ~(predictions <= score) | (predictions == score) & (classes < target[:, None])
        return (before.sum(1) < self.k) & ~score.squeeze(1).isnan()


class PredictiveEntropy(MeanMetric):
    """Mean entropy, in nats, of probabilities (B, K); the target is ignored."""

    def check(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Accept any `target`."""
        return target

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """-Σ p log p."""
        return entropy(predictions)


class MutualInformation(MeanMetric):
    """Mean mutual information, in nats, of Monte-Carlo samples.

    The predictions are the mean (B, K) of the samples, the target is their mean entropy (B,). The mutual information is
    predictive minus expected entropy (Houlsby et al. 2011, BALD); it measures how much the samples disagree.
    """

    def check(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return `target`, (B,), in the dtype of the sums.

        Raises:
            ValueError: If its shape is different or its dtype is not floating.
        """
        if target.shape != predictions.shape[:1] or not target.is_floating_point():
            raise ValueError(
                f"MutualInformation: wrong target: expected the mean entropy of each example's samples, with shape "
                f"({len(predictions)},) and a floating dtype; got {target.dtype} of shape {tuple(target.shape)}"
            )
        return target.to(self.dtype)

    def terms(self, predictions: Tensor, target: Tensor) -> Tensor:
        """H(mean p) - mean H(p)."""
        return entropy(predictions) - target


class Reliability(ExactMetric):
    """Mean confidence and accuracy per confidence bin, from probabilities (B, K) and labels (B,).

    Bin i of n holds the confidences in (i/n, (i+1)/n] (Guo et al. 2017, equation 3); the first bin includes 0. The
    edges are rounded to the dtype of the probabilities, so that 0.2 is exactly on the edge 0.2 in any precision.

    Args:
        bins: Number of equal-width bins.
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
            ValueError: If a shape, a dtype or a label is wrong.
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
        """The count, mean confidence and accuracy of each bin, each (bins,); 0 for empty bins."""
        counts = self.counts.clamp(min=1)
        return {
            "counts": self.counts,
            "confidence": (self.confidence / counts).float(),
            "accuracy": (self.correct.to(self.dtype) / counts).float(),
        }


class ExpectedCalibrationError(Reliability):
    """Mean gap between accuracy and confidence over the bins of `Reliability`, weighted by their counts."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Σ_b |correct_b - Σ confidence_b| / N."""
        return ((self.correct.to(self.dtype) - self.confidence).abs().sum() / self.counts.sum()).float()


class AURC(ExactMetric):
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017), from probabilities (B, K) and labels (B,).

    This is the error rate among the n most confident predictions, averaged over n: the expected error rate of a
    classifier that may abstain from the rest. 0 is best. The order of equally confident predictions is arbitrary, so
    the result is averaged over all orders; each such prediction counts as the error rate of its group,

        AURC = 1/N Σ_n 1/n Σ_(i <= n) e_i,  where e_i is the error rate among the predictions as confident as the i-th.
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
            ValueError: If a shape, a dtype or a label is wrong.
        """
        check_probabilities(self, probabilities)
        labels = check_labels(self, probabilities, labels)
        confidence, right = _judge(probabilities, labels)
        # In the metric's own dtype, since a rank without examples gathers an empty state of that dtype.
        self.confidence.append(confidence.to(self.dtype))
        self.wrong.append((~right).to(self.dtype))

    def compute(self) -> Tensor:
        """The error rate averaged over all coverages; NaN without examples."""
        if len(self.confidence) == 0:  # a list, or a tensor gathered from all ranks
            return torch.tensor(torch.nan)
        confidence, order = dim_zero_cat(self.confidence).sort(descending=True)
        wrong = dim_zero_cat(self.wrong)[order]
        _, group, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
        rate = torch.zeros_like(sizes, dtype=wrong.dtype).index_add(0, group, wrong) / sizes
        risks: Tensor = rate[group].cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)
        return risks.mean().float()


def _judge(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidences (B,), and whether each prediction is correct (B,); NaN never is."""
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
    # Otherwise torchmetrics merges metrics whose states are equal after the first batch, such as accuracy and top-3.
    return MetricCollection({**metrics, **accuracies}, prefix=prefix, compute_groups=False)
