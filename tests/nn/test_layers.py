import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.nn.layers import (
    ACTIVATIONS,
    DROPOUTS,
    ActivationName,
    DropoutName,
    make_activation,
    make_dropout,
    make_normalization,
)

pytestmark = pytest.mark.usefixtures("on_device")

FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "selu": lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x / (1 + (-x).exp()),
    "swish": lambda x: x / (1 + (-x).exp()),
    "mish": lambda x: x * torch.tanh((1 + x.exp()).log()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "hard_sigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "softplus": lambda x: (1 + x.exp()).log(),
}


def test_the_tables_hold_what_the_options_list():
    assert set(ACTIVATIONS) == set(get_args(ActivationName)) == set(FORMULAS)
    assert set(DROPOUTS) == set(get_args(DropoutName))


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_activation_is_its_formula(name):
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(make_activation(name)(x), FORMULAS[name](x), atol=1e-5, rtol=1e-5)


def test_activation_takes_its_parameters():
    x = torch.tensor([-2.0])
    assert make_activation("leaky_relu", {"negative_slope": 0.3})(x).item() == pytest.approx(-0.6)
    torch.testing.assert_close(make_activation("elu", {"alpha": 2.0})(x), F.elu(x, 2.0))


class Squared(torch.nn.Module):
    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power

    def forward(self, x):
        return x**self.power


@pytest.mark.parametrize(("parameters", "expected"), [(None, 9.0), ({"power": 3.0}, 27.0)])
def test_an_activation_of_ones_own_by_path(parameters, expected):
    assert make_activation(f"{__name__}.Squared", parameters)(torch.tensor(3.0)).item() == expected
    with pytest.raises(ValueError, match="unknown parameter of .*Squared: expected one of power; got 'powr'"):
        make_activation(f"{__name__}.Squared", {"powr": 3.0})


@pytest.mark.parametrize("path", ["this.F", f"{__name__}.FORMULAS", "wave.Error", "torch.nn.functional.relu"])
def test_a_path_of_no_activation_imports_nothing(monkeypatch, path):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(ValueError, match="unknown activation: expected one of .*, or the import path of a class"):
        make_activation(path)
    assert "this" not in sys.modules


def test_normalizations():
    x = torch.randn(64, 8) * 3 + 5
    torch.testing.assert_close(make_normalization("batch", 8, 0.1, 1e-5)(x).mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(make_normalization("layer", 8, 0.1, 1e-5)(x).mean(1), torch.zeros(64), atol=1e-5, rtol=0)
    assert make_normalization("none", 8, 0.1, 1e-5)(x) is x
    batch_norm = make_normalization("batch", 8, 0.01, 1e-3)
    assert (batch_norm.momentum, batch_norm.eps) == (0.01, 1e-3)


def test_errors():
    with pytest.raises(ValueError, match=r"unknown activation: expected one of relu, .*; got 'sellu' .*'selu'"):
        make_activation("sellu")
    with pytest.raises(ValueError, match="unknown parameter of leaky_relu: expected one of negative_slope; got"):
        make_activation("leaky_relu", {"slope": 0.1})
    with pytest.raises(ValueError, match="unknown parameter of selu: expected one of none"):
        make_activation("selu", {"alpha": 1})
    with pytest.raises(ValueError, match="unknown normalization"):
        make_normalization("group", 8, 0.1, 1e-5)
    with pytest.raises(ValueError, match="unknown dropout"):
        make_dropout("beta", 0.1)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        make_dropout("standard", 1)
