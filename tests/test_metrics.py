import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.metrics import classification_metrics


def test_metrics_are_their_definitions():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 10), torch.randint(0, 10, (500,))
    metrics = classification_metrics(10, "val_")
    for part in range(0, 500, 64):
        metrics.update(logits[part : part + 64], labels[part : part + 64])
    computed = metrics.compute()
    assert computed["val_loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item())
    assert computed["val_accuracy"].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    top3 = (logits.topk(3).indices == labels[:, None]).any(1).double().mean().item()
    assert computed["val_top3_accuracy"].item() == pytest.approx(top3)


def test_equal_first_batches_do_not_tie_metrics_together():
    metrics = classification_metrics(10)
    logits = torch.eye(10)
    metrics.update(logits, torch.arange(10))  # both accuracies are 1
    metrics.update(logits.flip(1) + 0.5 * logits, torch.arange(10))  # right only among the first three
    assert metrics.compute()["accuracy"].item() == pytest.approx(0.5)
    assert metrics.compute()["top3_accuracy"].item() == 1
