import warnings

import pytest
import torch
from torch import nn

from cifar_lightning import AlphaDropout, DeepMLP
from cifar_lightning.nn.mlp import parse_hidden_sizes

pytestmark = pytest.mark.usefixtures("on_device")


def names(module):
    return [type(m).__name__ for m in module]


def test_default_is_the_exercise():
    net = DeepMLP()
    assert len(net.hidden) == 20
    assert sum(p.numel() for p in net.parameters()) == 3072 * 100 + 100 + 19 * (100 * 100 + 100) + 100 * 10 + 10
    assert net(torch.randn(4, 3, 32, 32)).shape == (4, 10)
    assert all(torch.equal(linear.bias, torch.zeros_like(linear.bias)) for linear in net.linears())


@pytest.mark.parametrize(
    ("sizes", "expected"), [("20x100", [100] * 20), ([300, 100], [300, 100]), ((7,), [7]), (" 2 x 3 ", [3, 3])]
)
def test_hidden_sizes(sizes, expected):
    assert parse_hidden_sizes(sizes) == expected
    assert [layer.linear.out_features for layer in DeepMLP(5, 2, sizes).hidden] == expected


@pytest.mark.parametrize("sizes", [[], "", "0x100", "20x0", "20", "20x", [100, 0], [100, -1], [1.5], ["a"], [True]])
def test_wrong_hidden_sizes(sizes):
    with pytest.raises(ValueError, match="hidden_sizes must be one or more positive integers"):
        parse_hidden_sizes(sizes)


@pytest.mark.parametrize("sizes", ["999999999x2", "100000x100000", "10001x1", [1] * 10_001])
def test_too_many_layers(sizes):
    with pytest.raises(ValueError, match="hidden_sizes may have at most 10,000 layers, got"):
        parse_hidden_sizes(sizes)


@pytest.mark.parametrize("sizes", ["3x100000", [1_000_000], "1x999999999999999999"])
def test_too_many_weights(sizes):
    with pytest.raises(ValueError, match="network too large: at most 2,147,483,648 weights are allowed, got"):
        DeepMLP(hidden_sizes=sizes)


@pytest.mark.parametrize(
    ("position", "order"),
    [
        ("before_activation", ["Linear", "BatchNorm1d", "ELU", "Dropout"]),
        ("after_activation", ["Linear", "ELU", "BatchNorm1d", "Dropout"]),
    ],
)
def test_order_of_a_hidden_layer(position, order):
    net = DeepMLP(
        8, 3, [6, 5], "elu", normalization="batch", norm_position=position, dropout="standard", dropout_position="all"
    )
    assert [names(layer) for layer in net.hidden] == [order, order]


@pytest.mark.parametrize(
    ("position", "on_input", "on_hidden"),
    [("last", 0, [0, 0, 1]), ("all", 0, [1, 1, 1]), ("input_and_all", 1, [1, 1, 1])],
)
def test_dropout_position(position, on_input, on_hidden):
    net = DeepMLP(8, 3, [4, 4, 4], dropout="alpha", dropout_position=position)
    count = [sum(isinstance(m, AlphaDropout) for m in layer) for layer in (net.input, *net.hidden)]
    assert count == [on_input, *on_hidden]


@pytest.mark.parametrize(
    ("normalization", "position", "bias", "expected"),
    [
        ("none", "before_activation", None, True),
        ("batch", "before_activation", None, False),  # batch norm subtracts it again
        ("batch", "after_activation", None, True),
        ("layer", "before_activation", None, True),  # layer norm subtracts only its mean
        ("batch", "before_activation", True, True),
        ("none", "before_activation", False, False),
    ],
)
def test_bias(normalization, position, bias, expected):
    net = DeepMLP(8, 3, [4], "relu", normalization=normalization, norm_position=position, bias=bias)
    assert (net.hidden[0].linear.bias is not None) == expected
    assert net.output.bias is not None


def test_norm_input_and_options():
    net = DeepMLP(8, 3, [4], "relu", normalization="batch", norm_input=True, norm_momentum=0.01, norm_eps=1e-3)
    for norm in (net.input.norm, net.hidden[0].norm):
        assert (norm.momentum, norm.eps) == (0.01, 1e-3)
    assert net.input.norm.num_features == 8


def test_output_layer_has_its_own_initializer():
    torch.manual_seed(0)
    net = DeepMLP(400, 400, [400], init="he_normal", output_init="lecun_normal", activation="relu")
    assert net.hidden[0].linear.weight.var().item() == pytest.approx(2 / 400, rel=0.05)
    assert net.output.weight.var().item() == pytest.approx(1 / 400, rel=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_thousand_selu_layers_keep_their_moments(seed):
    torch.manual_seed(seed)
    net = DeepMLP(100, 10, "1000x100", init="lecun_normal")
    x = torch.randn(500, 100)
    with torch.no_grad():
        for depth, layer in enumerate(net.hidden, start=1):
            x = layer(x)
            if depth % 100 == 0:
                assert abs(x.mean()) < 0.2  # a hundred units: a standard error of about 0.05
                assert abs(x.std() - 1) < 0.2


def test_constrain_bounds_the_norm_into_each_hidden_unit():
    net = DeepMLP(50, 10, [40, 30], "relu", init="he_normal", max_norm=1.0)
    before = [linear.weight.clone() for linear in net.linears()]
    net.constrain_()
    for old, linear in zip(before[:-1], net.linears()[:-1], strict=True):
        norm = old.norm(dim=1, keepdim=True)
        torch.testing.assert_close(linear.weight, old * norm.clamp(max=1) / norm, atol=1e-6, rtol=1e-5)
    assert torch.equal(net.output.weight, before[-1])


def test_penalty_is_of_all_weights_and_no_bias():
    net = DeepMLP(50, 10, [40, 30], l1=0.1, l2=0.01)
    net.penalty().backward()
    weights = [linear.weight for linear in net.linears()]
    expected = sum(0.1 * w.abs().sum() + 0.01 * (w * w).sum() for w in weights)
    torch.testing.assert_close(net.penalty(), expected)
    for w in weights:
        torch.testing.assert_close(w.grad, 0.1 * w.sign() + 2 * 0.01 * w)
    assert all(linear.bias.grad is None for linear in net.linears())
    assert DeepMLP(50, 10, [40]).penalty() == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"init": "he_normal"}, "initializer is he_normal: the fixed point needs"),
        ({"dropout": "standard"}, "dropout is standard: only alpha dropout keeps"),
        ({"normalization": "batch"}, "there is batch normalization"),
        ({"max_norm": 1.0}, "max_norm is set"),
    ],
)
def test_a_selu_network_says_why_it_does_not_normalize_itself(change, reason):
    with pytest.warns(UserWarning, match=reason) as caught:
        net = DeepMLP(8, 3, [4], "selu", **change)
    assert len(caught) == 1
    assert not net.is_self_normalizing()
    assert len(net.self_normalization_gaps()) == 1


def test_self_normalizing_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = DeepMLP(8, 3, [4], dropout="alpha")
        relu = DeepMLP(8, 3, [4], "relu")  # no warning: it does not claim to
    assert net.is_self_normalizing()
    assert not net.is_self_normalizing(standardized_input=False)
    assert "the input is not standardized" in net.self_normalization_gaps(standardized_input=False)[0]
    assert "only SELU has" in relu.self_normalization_gaps()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features and num_classes must be at least 1"),
        ({"activation": "swich"}, "did you mean 'swish'"),
        ({"init": "he"}, "unknown initializer"),
        ({"normalization": "batchnorm"}, "unknown normalization"),
        ({"norm_position": "before"}, "unknown norm_position"),
        ({"norm_input": True}, "norm_input needs a normalization: .* got 'none'"),
        ({"dropout": "alfa"}, "did you mean 'alpha'"),
        ({"dropout": "alpha", "dropout_p": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"dropout_position": "first"}, "unknown dropout_position"),
        ({"max_norm": 0}, "max_norm must be"),
        ({"l1": -1.0}, "l1 must be 0 or a positive number, got -1.0"),
        ({"l2": float("inf")}, "l2 must be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        DeepMLP(**{"in_features": 8, "num_classes": 3, "hidden_sizes": [4]} | options)


def test_wrong_input():
    with pytest.raises(ValueError, match="wrong input shape: expected 8 values per example, got 9"):
        DeepMLP(8, 3, [4])(torch.randn(2, 9))


def test_it_is_an_ordinary_module():
    net = DeepMLP(8, 3, [4, 4], dropout="alpha", dropout_position="all")
    assert isinstance(net, nn.Module)
    assert set(net.state_dict()) >= {"hidden.0.linear.weight", "hidden.1.linear.bias", "output.weight"}
    exported = torch.export.export(net.eval(), (torch.randn(2, 8),)).module()
    x = torch.randn(2, 8)
    torch.testing.assert_close(exported(x), net(x))


def test_a_network_is_shown_in_one_line():
    network = DeepMLP(in_features=12, num_classes=3, hidden_sizes="4x8", activation="elu", normalization="batch")
    count = sum(parameter.numel() for parameter in network.parameters())
    assert repr(network) == f"DeepMLP(12 -> 4 x 8 elu, lecun_normal, batch norm -> 3; {count} parameters)"
