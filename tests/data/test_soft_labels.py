import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.data.augment import SoftLabels

IMAGES = torch.randint(256, (16, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5


def test_without_options_a_batch_is_left_alone():
    images, targets = SoftLabels(5)(IMAGES, LABELS)
    assert images is IMAGES
    assert targets is LABELS


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_is_torchs(smoothing):
    images, targets = SoftLabels(5, label_smoothing=smoothing)(IMAGES, LABELS)
    assert images is IMAGES
    logits = torch.randn(16, 5)
    expected = F.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)


def share_of(targets, labels):
    """The share lambda that images have of their own: that of one whose partner, with another label, has the rest."""
    return targets.gather(-1, labels[..., None]).min().item()


def test_mixup_is_the_papers_equation_1():
    torch.manual_seed(0)
    images, targets = SoftLabels(16, mixup=1.0)(IMAGES, torch.arange(16))  # labels that tell the partners
    own = targets.diagonal()
    partners = (targets - torch.diag(own)).argmax(1)
    partners = torch.where(own == 1, torch.arange(16), partners)
    (lam,) = own[own < 1].unique()  # one a batch
    assert 0.5 <= lam < 1
    expected = lam * IMAGES.float() + (1 - lam) * IMAGES[partners].float()
    torch.testing.assert_close(images, expected)
    assert partners.sort().values.tolist() == list(range(16))  # each is a partner once
    torch.testing.assert_close(targets.sum(1), torch.ones(16))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_betas_larger_half(alpha):
    torch.manual_seed(0)
    soften = SoftLabels(16, mixup=alpha)
    labels = torch.arange(16)
    shares = torch.tensor([share_of(soften(IMAGES, labels)[1], labels) for _ in range(2000)])
    lam = torch.distributions.Beta(alpha, alpha).sample((100_000,))
    expected = torch.maximum(lam, 1 - lam)
    for quantile in (0.1, 0.5, 0.9):
        assert abs((shares <= expected.quantile(quantile)).float().mean() - quantile) < 0.05


def test_smoothing_comes_before_mixing():
    torch.manual_seed(0)
    _, plain = SoftLabels(5, mixup=0.4)(IMAGES, LABELS)
    torch.manual_seed(0)
    _, smooth = SoftLabels(5, mixup=0.4, label_smoothing=0.1)(IMAGES, LABELS)
    torch.testing.assert_close(smooth, 0.9 * plain + 0.1 / 5)


def test_each_row_is_mixed_by_itself():
    torch.manual_seed(0)
    rows, labels = torch.stack([IMAGES, IMAGES.flip(0), IMAGES]), torch.arange(16).repeat(3, 1)
    images, targets = SoftLabels(16, mixup=1.0)(rows, labels)
    assert images.shape == rows.shape
    assert len({share_of(row, label) for row, label in zip(targets, labels, strict=True)}) == 3
    for row, mixed, target in zip(rows, images, targets, strict=True):
        torch.testing.assert_close(mixed, torch.tensordot(target, row.float(), 1))


def test_a_seed_decides():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(SoftLabels(5, mixup=0.3)(IMAGES, LABELS))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -0.1}, "mixup must be 0 or a positive number, got -0.1"),
        ({"mixup": float("inf")}, "mixup must be"),
        ({"mixup": float("nan")}, "mixup must be"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.5}, "label_smoothing must be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SoftLabels(5, **options)
