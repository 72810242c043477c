import pytest
import torch

from cifar_lightning import Standardize, compute_statistics

IMAGES = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scaling", ["raw", "unit", "channel", "feature"])
def test_images_are_standardized_where_the_module_is(device, scaling):
    module = Standardize()
    module.set_statistics(compute_statistics(IMAGES, scaling))
    torch.testing.assert_close(module.to(device)(IMAGES.to(device)).cpu(), standardized(IMAGES, scaling))


def standardized(images, scaling):
    module = Standardize()
    module.set_statistics(compute_statistics(IMAGES, scaling))
    return module(images)


def test_feature_scaling_is_that_of_a_standard_scaler():
    x = IMAGES.double()
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(standardized(IMAGES, "feature"), expected.float())


def test_statistics_are_those_of_the_images_named():
    indices = torch.arange(0, 300, 7)
    ours, theirs = compute_statistics(IMAGES, "feature", indices), compute_statistics(IMAGES[indices], "feature")
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)


def test_sums_are_exact_where_they_are_largest():
    white = torch.full((1000, 3, 32, 32), 255, dtype=torch.uint8)
    white[0] = 254
    statistics = compute_statistics(white, "feature")
    torch.testing.assert_close(statistics.std, white.double().std(0, correction=0).float(), rtol=1e-6, atol=0)


def test_channel_scaling():
    x = IMAGES.double()
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(standardized(IMAGES, "channel"), ((x - mean) / std).float())


def test_raw_and_unit():
    assert torch.equal(standardized(IMAGES, "raw"), IMAGES.float())
    torch.testing.assert_close(standardized(IMAGES, "unit"), IMAGES.float() / 255)


def test_constant_features_become_zero():
    images = IMAGES.clone()
    images[:, 1, 5, 5] = 77
    module = Standardize()
    module.set_statistics(compute_statistics(images, "feature"))
    y = module(images)
    assert y.isfinite().all()
    assert (y[:, 1, 5, 5] == 0).all()


def test_statistics_are_part_of_the_state():
    module = Standardize()
    module.set_statistics(compute_statistics(IMAGES, "feature"))
    loaded = Standardize()
    loaded.load_state_dict(module.state_dict())
    assert loaded.scaling == "feature"
    assert torch.equal(loaded(IMAGES), module(IMAGES))


def test_statistics_are_kept_and_never_contradicted():
    module = Standardize()
    module.set_statistics(compute_statistics(IMAGES, "feature"))
    mean = module.mean.clone()
    module.set_statistics(compute_statistics(IMAGES[:10], "feature"))
    assert torch.equal(module.mean, mean)
    with pytest.raises(ValueError, match="contradicting scalings: expected 'feature', .* got 'unit'"):
        module.set_statistics(compute_statistics(IMAGES, "unit"))
    other = Standardize()
    other.set_statistics(compute_statistics(IMAGES, "unit"))
    with pytest.raises(ValueError, match="contradicting scalings: expected 'unit', .* got 'feature'"):
        other.load_state_dict(module.state_dict())


def test_errors():
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\), got \(2, 3, 28, 28\)"):
        Standardize()(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match="unknown scaling: expected one of raw, unit, channel, feature"):
        compute_statistics(IMAGES, "minmax")
    with pytest.raises(ValueError, match="at least one training image, got none"):
        compute_statistics(IMAGES[:0], "feature")


def test_statistics_are_shown_in_one_line():
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    statistics = compute_statistics(images, "feature")
    assert repr(statistics) == "Statistics(feature: mean 6 to 17, std 6 to 6)"
    module = Standardize((3, 2, 2))
    assert repr(module) == "Standardize(no statistics yet)"
    module.set_statistics(statistics)
    assert repr(module) == "Standardize(feature)"
