import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning.analysis.metrics import (
    AURC,
    BrierScore,
    CrossEntropy,
    ExpectedCalibrationError,
    MutualInformation,
    NegativeLogLikelihood,
    PredictiveEntropy,
    Reliability,
    TopKAccuracy,
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


@pytest.mark.parametrize(
    "make",
    [BrierScore, AURC, Reliability, ExpectedCalibrationError, TopKAccuracy, PredictiveEntropy, NegativeLogLikelihood],
)
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


def aurc_over_orders(confidence, wrong):
    """The mean over random orders of equally confident predictions."""
    rng, values = np.random.default_rng(0), []
    for _ in range(4000):
        order = np.lexsort((rng.random(len(wrong)), -confidence))
        values.append((wrong[order].cumsum() / np.arange(1, len(wrong) + 1)).mean())
    return np.mean(values), np.std(values) / len(values) ** 0.5


def rounded(dtype):
    """Logits with many ties, in few bits."""
    return (LOGITS * 2).round().div(2).to(dtype)


CONVERSIONS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to(torch.float16),
    "to device and dtype": lambda module: module.to("cpu", torch.bfloat16),
    "type": lambda module: module.type(torch.float16),
    "none": lambda module: module,
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_gives_what_float64_gives(convert, dtype):
    module = nn.Module()
    module.loss, module.metrics = classification_metrics(10), evaluation_metrics(10)
    convert(module)
    logits = LOGITS.to(dtype)
    probabilities = LOGITS.softmax(1).to(dtype)
    computed(module.loss, logits, LABELS)
    computed(module.metrics, probabilities, LABELS)
    exact, labels = probabilities.double(), LABELS
    expected = {
        "nll": -exact.gather(1, labels[:, None]).log().mean().item(),
        "brier": (exact - F.one_hot(labels, 10)).square().sum(1).mean().item(),
        "ece": ece_by_hand(probabilities.double().numpy(), labels.numpy()),
        "entropy": torch.special.entr(exact).sum(1).mean().item(),
        "accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
    }
    values = {name: value.item() for name, value in module.metrics.compute().items()}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6), name
    assert module.loss.compute()["loss"].item() == pytest.approx(
        F.cross_entropy(logits.double(), labels).item(), rel=1e-6
    )
    for metric in (*module.loss.values(), *module.metrics.values()):
        for state in metric.metric_state.values():
            assert {part.dtype for part in (state if isinstance(state, list) else [state])} <= {
                torch.float64,
                torch.int64,
            }


def test_states_survive_a_conversion_and_a_half_precise_default():
    torch.set_default_dtype(torch.float16)
    try:
        metric = CrossEntropy()
        for _ in range(100):
            metric.update(torch.full((1000, 10), 3.0), torch.zeros(1000, dtype=torch.long))
        metric.to(torch.float16)
        assert metric.compute().item() == pytest.approx(np.log(10), rel=1e-6)
        metric.reset()
        assert metric.total.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_sums_and_counts_grow_beyond_a_hundred_million_examples():
    accuracy, reliability, ece = TopKAccuracy(), Reliability(), ExpectedCalibrationError()
    many = 10**8
    accuracy.total, accuracy.count = accuracy.total + many, accuracy.count + many
    for metric in (reliability, ece):
        for name in ("counts", "correct", "confidence"):
            getattr(metric, name)[-1] += many
    wrong, label = torch.eye(10)[:1], torch.tensor([1])
    for metric in (accuracy, reliability, ece):
        for _ in range(3):
            metric.update(wrong, label)
    assert (accuracy.total, accuracy.count) == (many, many + 3)
    assert (reliability.counts[-1], reliability.correct[-1]) == (many + 3, many)
    assert reliability.confidence[-1] == many + 3
    assert ece.compute().item() == pytest.approx(3 / (many + 3), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_order_of_the_data_makes_no_difference(dtype):
    logits = rounded(dtype)
    probabilities = logits.double().softmax(1).to(dtype)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    for make, values in ((classification_metrics, logits), (evaluation_metrics, probabilities)):
        one, other = computed(make(10), values, LABELS), computed(make(10), values[order], LABELS[order])
        for name in one:
            assert one[name].item() == pytest.approx(other[name].item(), rel=1e-7), name


def test_aurc_with_ties_is_the_mean_over_their_orders():
    probabilities = (LOGITS.softmax(1) * 4).round() / 4
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != LABELS).numpy()
    expected, error = aurc_over_orders(confidence.numpy(), wrong)
    assert computed(AURC(), probabilities, LABELS).item() == pytest.approx(expected, abs=5 * error)
    same = torch.full((N, 10), 0.1)
    assert computed(AURC(), same, LABELS).item() == pytest.approx((LABELS != 0).double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_ties_go_to_the_first_classes_as_in_argmax(k):
    logits = rounded(torch.float32)
    order = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :k]
    expected = (order == LABELS.numpy()[:, None]).any(1).mean()
    assert computed(TopKAccuracy(k), logits, LABELS).item() == pytest.approx(expected, rel=1e-6)
    if k == 1:
        assert expected == (logits.argmax(1) == LABELS).double().mean().item()


def test_nan_is_never_right():
    logits = torch.full((4, 3), torch.nan)
    logits[1:, 0] = 1
    metrics = classification_metrics(3)
    metrics.update(logits, torch.zeros(4, dtype=torch.long))
    values = metrics.compute()
    assert values["accuracy"] == 0
    assert values["loss"].isnan()


def test_the_bins_of_the_issue():
    # Ten images at confidence 1, seven of them right, and ten at 0.95, all right: one bin, (14/15, 1].
    probabilities = torch.tensor([[1.0, 0.0]] * 10 + [[0.95, 0.05]] * 10)
    labels = torch.tensor([0] * 7 + [1] * 3 + [0] * 10)
    metrics, reliability = evaluation_metrics(2), Reliability()
    for metric in (metrics, reliability):
        metric.update(probabilities, labels)
    assert metrics.compute()["ece"].item() == pytest.approx(0.125, rel=1e-6)
    curve = reliability.compute()
    assert curve["counts"].tolist() == [0] * 14 + [20]
    assert curve["accuracy"][-1] == 0.85
    assert curve["confidence"][-1].item() == pytest.approx(0.975, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [2, 5, 10, 15])
def test_an_edge_belongs_to_the_bin_below(dtype, bins):
    edges = (torch.arange(1, bins + 1, dtype=torch.float64) / bins).to(dtype)
    metric = Reliability(bins)
    metric.update(torch.stack([edges, torch.zeros_like(edges)], 1), torch.zeros(bins, dtype=torch.long))
    assert metric.compute()["counts"].tolist() == [1] * bins
    metric.reset()
    above = edges[:-1] * (1 + 2 * torch.finfo(dtype).eps)
    metric.update(torch.stack([above, torch.zeros_like(above)], 1), torch.zeros(bins - 1, dtype=torch.long))
    assert metric.compute()["counts"].tolist() == [0] + [1] * (bins - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_small_probabilities_keep_their_nll(dtype):
    p = torch.tensor([[6e-8, 1.0], [0.0, 1.0]], dtype=dtype)
    metric = NegativeLogLikelihood()
    metric.update(p, torch.tensor([0, 0]))
    expected = -(p[0, 0].double().log() + np.log(float(np.finfo(np.float32).tiny))) / 2
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-6)


OF_PROBABILITIES = [
    *(NegativeLogLikelihood, BrierScore, PredictiveEntropy),
    *(Reliability, ExpectedCalibrationError, AURC),
]
LABELLED = [CrossEntropy, NegativeLogLikelihood, BrierScore, TopKAccuracy, Reliability, ExpectedCalibrationError, AURC]


@pytest.mark.parametrize("make", LABELLED)
@pytest.mark.parametrize(
    ("target", "received"),
    [
        (torch.eye(10).long()[LABELS], r"torch.int64 of shape \(700, 10\)"),
        (LABELS[:, None], r"torch.int64 of shape \(700, 1\)"),
        (LABELS[:1], r"torch.int64 of shape \(1,\)"),
        (LABELS.float(), r"torch.float32 of shape \(700,\)"),
        (LABELS + 1, "1 to 10"),
        (LABELS - 1, "-1 to 8"),
    ],
)
def test_wrong_labels_are_refused(make, target, received):
    with pytest.raises(ValueError, match=rf"{make.__name__}: wrong labels: expected .* got {received}"):
        make().update(PROBABILITIES, target)


@pytest.mark.parametrize("make", [*LABELLED, PredictiveEntropy, MutualInformation])
@pytest.mark.parametrize("predictions", [PROBABILITIES[:, 0], PROBABILITIES[None], (PROBABILITIES * 9).long()])
def test_wrong_predictions_are_refused(make, predictions):
    with pytest.raises(ValueError, match="wrong predictions: expected a floating dtype and the shape"):
        make().update(predictions, LABELS)


@pytest.mark.parametrize("target", [LABELS, PROBABILITIES, PROBABILITIES[:1, 0]])
def test_mutual_information_wants_an_entropy_of_each_example(target):
    with pytest.raises(ValueError, match="MutualInformation: wrong target: expected the mean entropy"):
        MutualInformation().update(PROBABILITIES, target)


@pytest.mark.parametrize("make", [*OF_PROBABILITIES, MutualInformation])
@pytest.mark.parametrize("predictions", [LOGITS, PROBABILITIES * 100, -PROBABILITIES])
def test_logits_in_the_place_of_probabilities_are_refused(make, predictions):
    target = torch.zeros(N) if make is MutualInformation else LABELS
    with pytest.raises(ValueError, match=f"{make.__name__}: wrong predictions: expected probabilities between 0 and 1"):
        make().update(predictions, target)


@pytest.mark.parametrize("make", OF_PROBABILITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_roundings_make_no_probability_wrong(make, dtype):
    metric = make()
    metric.update(torch.tensor([[1 + torch.finfo(dtype).eps, -torch.finfo(dtype).eps]], dtype=dtype), torch.tensor([0]))
    assert metric.update_count == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("empty", [False, True])
def test_no_examples_have_no_value(empty):
    metrics = evaluation_metrics(3)
    if empty:
        metrics.update(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    assert all(value.isnan() for value in metrics.compute().values())
    assert all((value == 0).all() for value in Reliability().compute().values())


def test_an_empty_batch_changes_nothing():
    one, other = evaluation_metrics(10), evaluation_metrics(10)
    for metrics in (one, other):
        metrics.update(PROBABILITIES, LABELS)
    other.update(PROBABILITIES[:0], LABELS[:0])
    assert one.compute() == other.compute()


def test_predictions_that_are_nan_are_wrong_and_have_no_calibration():
    probabilities = PROBABILITIES.clone()
    probabilities[::2] = torch.nan
    labels = torch.where(torch.arange(N) % 2 == 0, 0, LABELS)  # of which `argmax` would be right
    values = computed(evaluation_metrics(10), probabilities, labels)
    right = (PROBABILITIES.argmax(1) == LABELS)[1::2].sum().item()
    assert values["accuracy"].item() == pytest.approx(right / N)
    assert values["ece"].isnan()
    assert values["aurc"] > 0.5
    assert computed(Reliability(), probabilities, labels)["counts"].sum() == N


@pytest.mark.parametrize("k", [0, -1])
def test_there_is_no_top_0(k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        TopKAccuracy(k)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint32])
def test_labels_of_any_integer_dtype(dtype):
    expected, values = (
        computed(evaluation_metrics(10), PROBABILITIES, labels) for labels in (LABELS, LABELS.to(dtype))
    )
    assert values == expected
