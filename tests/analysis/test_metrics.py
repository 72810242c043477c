import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F

from cifar_lightning.analysis.metrics import (
    AURC,
    BrierScore,
    MutualInformation,
    NegativeLogLikelihood,
    PredictiveEntropy,
    Reliability,
    classification_metrics,
    evaluation_metrics,
)

N = 700
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, 10, generator=GENERATOR) * 2
LABELS = torch.randint(0, 10, (N,), generator=GENERATOR)
PROBABILITIES = LOGITS.softmax(1)


def computed(metric, predictions, target):
    """The metric over several batches."""
    for start in range(0, N, 64):
        metric.update(predictions[start : start + 64], target[start : start + 64])
    return metric.compute()


def test_training_metrics_are_their_definitions():
    values = computed(classification_metrics(10, "val_"), LOGITS, LABELS)
    assert values["val_loss"].item() == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())
    assert values["val_accuracy"].item() == pytest.approx((LOGITS.argmax(1) == LABELS).double().mean().item())
    top3 = sklearn.metrics.top_k_accuracy_score(LABELS, LOGITS, k=3)
    assert values["val_top3_accuracy"].item() == pytest.approx(top3)


def test_equal_first_batches_do_not_tie_metrics_together():
    metrics = classification_metrics(10)
    logits = torch.eye(10)
    metrics.update(logits, torch.arange(10))  # both accuracies are 1
    metrics.update(logits.flip(1) + 0.5 * logits, torch.arange(10))  # right only among the first three
    assert metrics.compute()["accuracy"].item() == pytest.approx(0.5)
    assert metrics.compute()["top3_accuracy"].item() == 1


def test_nll_and_brier_are_scikit_learns():
    labels, probabilities = LABELS.numpy(), PROBABILITIES.double().numpy()
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    nll = computed(NegativeLogLikelihood(), PROBABILITIES, LABELS).item()
    assert nll == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=range(10)), rel=1e-5)
    brier = computed(BrierScore(), PROBABILITIES, LABELS).item()
    expected = sklearn.metrics.brier_score_loss(labels, probabilities, labels=range(10), scale_by_half=False)
    assert brier == pytest.approx(expected, rel=1e-5)


def test_a_probability_of_zero_has_a_finite_nll():
    metric = NegativeLogLikelihood()
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert metric.compute().isfinite()


def test_entropies():
    entropies = scipy.stats.entropy(PROBABILITIES.numpy(), axis=1)
    assert computed(PredictiveEntropy(), PROBABILITIES, LABELS).item() == pytest.approx(entropies.mean(), rel=1e-5)
    samples = torch.randn(5, N, 10, generator=GENERATOR).softmax(-1)
    expected_entropy = torch.from_numpy(scipy.stats.entropy(samples.numpy(), axis=-1).mean(0))
    mutual = scipy.stats.entropy(samples.mean(0).numpy(), axis=1) - expected_entropy.numpy()
    value = computed(MutualInformation(), samples.mean(0), expected_entropy).item()
    assert value == pytest.approx(mutual.mean(), rel=1e-4)


def ece_by_hand(probabilities, labels, bins=15):
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            total += inside.mean() * abs((predicted == labels)[inside].mean() - confidence[inside].mean())
    return total


def test_ece_by_hand_and_by_the_reliability_diagram():
    expected = ece_by_hand(PROBABILITIES.numpy(), LABELS.numpy())
    assert computed(evaluation_metrics(10), PROBABILITIES, LABELS)["ece"].item() == pytest.approx(expected, rel=1e-4)
    curve = computed(Reliability(), PROBABILITIES, LABELS)
    gaps = (curve["accuracy"] - curve["confidence"]).abs()
    assert (curve["counts"] / N * gaps).sum().item() == pytest.approx(expected, rel=1e-4)
    assert curve["counts"].sum() == N


def test_aurc_by_hand():
    wrong = (PROBABILITIES.argmax(1) != LABELS).numpy()
    order = np.argsort(-PROBABILITIES.max(1).values.numpy(), kind="stable")
    risks = [wrong[order[:n]].mean() for n in range(1, N + 1)]
    assert computed(AURC(), PROBABILITIES, LABELS).item() == pytest.approx(np.mean(risks), rel=1e-4)


@pytest.mark.parametrize("make", [BrierScore, AURC, Reliability, PredictiveEntropy, NegativeLogLikelihood])
def test_ranks_are_reduced(make):
    # What torchmetrics does across ranks: states that add up are summed, lists concatenated.
    whole, parts = make(), [make(), make()]
    whole.update(PROBABILITIES, LABELS)
    for part, chunk in zip(parts, (slice(0, 300), slice(300, N)), strict=True):
        part.update(PROBABILITIES[chunk], LABELS[chunk])
    merged = make()
    for name, reduction in merged._reductions.items():
        states = [getattr(part, name) for part in parts]
        joined = [torch.cat([torch.cat(s) for s in states])] if isinstance(states[0], list) else sum(states)
        assert reduction is not None
        setattr(merged, name, joined)
    merged._update_count = 1
    expected, received = whole.compute(), merged.compute()
    torch.testing.assert_close(received, expected)
