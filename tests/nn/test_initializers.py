from math import sqrt
from typing import get_args

import pytest
import scipy.stats
import torch

from cifar_lightning import initialize_, variance_scaling_
from cifar_lightning.nn.initializers import TRUNCATED_STD, InitName

FAN_OUT, FAN_IN = 300, 500
#: Variance of each family, from its paper.
VARIANCE = {"he": 2 / FAN_IN, "glorot": 2 / (FAN_IN + FAN_OUT), "lecun": 1 / FAN_IN}


def reference(distribution: str, std: float):
    """The distribution of standard deviation `std`, as SciPy knows it."""
    match distribution:
        case "normal":
            scale = std / TRUNCATED_STD
            return scipy.stats.truncnorm(-2, 2, scale=scale)
        case "untruncated_normal":
            return scipy.stats.norm(scale=std)
        case "uniform":
            return scipy.stats.uniform(-sqrt(3) * std, 2 * sqrt(3) * std)


@pytest.mark.parametrize("init", [name for name in get_args(InitName) if name != "orthogonal"])
def test_follows_its_distribution(init):
    family, _, distribution = init.partition("_")
    std = sqrt(VARIANCE[family])
    weight = initialize_(torch.empty(FAN_OUT, FAN_IN), init, torch.Generator().manual_seed(0))
    expected = reference(distribution, std)
    assert expected.std() == pytest.approx(std)
    assert scipy.stats.kstest(weight.flatten().numpy(), expected.cdf).pvalue > 0.01


def test_truncated_std_is_that_of_the_truncated_normal():
    assert scipy.stats.truncnorm(-2, 2).std() == pytest.approx(TRUNCATED_STD, abs=1e-12)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", FAN_IN), ("fan_out", FAN_OUT), ("fan_avg", 400)])
def test_variance_is_scale_over_fan(mode, fan):
    weight = variance_scaling_(torch.empty(FAN_OUT, FAN_IN), 3.0, mode, "uniform", torch.Generator().manual_seed(1))
    assert weight.var().item() == pytest.approx(3 / fan, rel=0.02)


def test_a_kernel_multiplies_both_fans():
    weight = variance_scaling_(torch.empty(64, 32, 5, 3), 2.0, "fan_out", "uniform", torch.Generator().manual_seed(1))
    assert weight.var().item() == pytest.approx(2 / (64 * 15), rel=0.02)


@pytest.mark.parametrize("init", get_args(InitName))
@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (0, 0), (2, 3, 0)])
def test_a_weight_without_elements_stays_as_it_is(init, shape):
    assert initialize_(torch.empty(shape), init).shape == shape


def test_orthogonal():
    weight = initialize_(torch.empty(30, 50), "orthogonal")
    torch.testing.assert_close(weight @ weight.T, torch.eye(30))


def test_a_generator_makes_it_reproducible():
    first, second = (initialize_(torch.empty(5, 4), "he_normal", torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_errors():
    weight = torch.empty(3, 3)
    with pytest.raises(ValueError, match=r"unknown initializer: expected one of .* \(did you mean 'he_normal'"):
        initialize_(weight, "he_norml")
    with pytest.raises(ValueError, match=r"the shape \(outputs, inputs, ...\), got \(3,\)"):
        variance_scaling_(torch.empty(3))
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        variance_scaling_(weight, 0)
    with pytest.raises(ValueError, match="unknown mode"):
        variance_scaling_(weight, mode="fan")
    with pytest.raises(ValueError, match="unknown distribution"):
        variance_scaling_(weight, distribution="normal")
