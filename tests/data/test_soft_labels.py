import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.data.soft_labels import SoftLabels

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
        ({"cutmix": -1.0}, "cutmix must be 0 or a positive number, got -1.0"),
        ({"cutmix": float("nan")}, "cutmix must be"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.5}, "label_smoothing must be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SoftLabels(5, **options)


def test_cutmix_is_the_papers_equation_1():
    torch.manual_seed(0)
    for _ in range(50):
        images, targets = SoftLabels(16, cutmix=1.0)(IMAGES, torch.arange(16))  # labels that tell the partners
        own = targets.diagonal()
        partners = (targets - torch.diag(own)).argmax(1)
        is_own = (images == IMAGES).all(1) | ((images == IMAGES[partners]).all(1).logical_not())
        partners = torch.where(own == 1, torch.arange(16), partners)
        mixed = own < 1
        if not mixed.any():
            continue
        (lam,) = own[mixed].unique()  # one a batch
        boxes = ~is_own[mixed]
        box = boxes.any(0)  # (an image and its partner may have equal pixels)
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "a box"
        assert len(rows) == len(columns), "of the image's proportions"
        assert box.float().mean() == pytest.approx(1 - lam.item())
        expected = torch.where(box, IMAGES[partners], IMAGES)
        torch.testing.assert_close(images, expected.float())


def test_boxes_lie_anywhere_and_have_all_sizes():
    torch.manual_seed(0)
    ones = torch.ones(1, 1, 8, 8)
    batch = torch.cat([ones, 1 - ones])
    kept = torch.stack([SoftLabels(2, cutmix=1.0)(batch, torch.arange(2))[0][0, 0] for _ in range(4000)])
    kept = kept[kept.mean((1, 2)) < 1]  # where the partner is another image
    assert kept.mean((1, 2)).unique().tolist() == [1 - n * n / 64 for n in range(7, 0, -1)]
    assert (kept.mean(0) - kept.mean(0).flip(0)).abs().max() < 0.06, "symmetric"


def test_mixup_and_cutmix_take_turns():
    torch.manual_seed(0)
    soften, labels = SoftLabels(16, mixup=1.0, cutmix=1.0), torch.arange(16)
    whole = 0
    for _ in range(400):
        images, targets = soften(IMAGES, labels)
        whole += torch.allclose(images, torch.tensordot(targets, IMAGES.float(), 1), atol=1e-3)
    assert 150 < whole < 250


def test_each_row_is_cut_by_itself():
    torch.manual_seed(0)
    rows, labels = torch.rand(6, 16, 3, 8, 8), torch.arange(16).repeat(6, 1)
    images, targets = SoftLabels(16, cutmix=1.0)(rows, labels)
    assert images.shape == rows.shape
    for row, mixed, target in zip(rows, images, targets, strict=True):
        kept = (mixed == row).all(1).float().mean((1, 2))
        torch.testing.assert_close(kept, target.diagonal())
    assert len({share_of(row, label) for row, label in zip(targets, labels, strict=True)}) > 2


@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (4, 3, 5, 9), (1, 3, 8, 8), (4, 3, 1, 1), (2, 4, 3, 5, 9)], ids=str)
@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64], ids=str)
def test_images_of_any_shape_and_dtype_are_mixed(shape, options, dtype):
    torch.manual_seed(0)
    images, labels = torch.ones(shape, dtype=dtype), torch.zeros(shape[:-3], dtype=torch.long)
    mixed, targets = SoftLabels(2, **options)(images, labels)
    assert mixed.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    torch.testing.assert_close(mixed, torch.ones(shape, dtype=mixed.dtype))
    torch.testing.assert_close(targets, torch.tensor([1.0, 0.0]).expand(*shape[:-3], 2))


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_makes_no_difference(default):
    """Lightning sets it for precisions like bf16-true, in which torch can't draw shares."""
    soften = SoftLabels(5, mixup=0.5, cutmix=1.0, label_smoothing=0.1)
    torch.manual_seed(0)
    expected = [soften(IMAGES, LABELS)]
    torch.manual_seed(0)
    torch.set_default_dtype(default)
    try:
        found = [soften(IMAGES, LABELS)]
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)
