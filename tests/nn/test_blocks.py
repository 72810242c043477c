import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import DeepMLP
from cifar_lightning.analysis.mc_dropout import mc_predict
from cifar_lightning.nn.blocks import Residual


def randomize(net):
    """Give biases and normalizations other values than the ones of a new network, which do nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("norm_position", ["before_activation", "after_activation"])
def test_a_residual_block_adds_its_input(norm_position):
    options = {"activation": "elu", "normalization": "batch", "norm_position": norm_position}
    residual = randomize(DeepMLP(8, 3, [5, 5, 4, 4], block="residual", **options))
    plain = DeepMLP(8, 3, [5, 5, 4, 4], **options)
    plain.load_state_dict(residual.state_dict())  # the layers inside are the same
    x = torch.randn(16, 8)
    expected = x
    for index, layer in enumerate(plain.hidden):
        skipped = expected if index in (1, 3) else 0.0  # where the width stays the same
        expected = layer(expected) + skipped
    torch.testing.assert_close(residual(x), plain.output(expected))


def test_an_inverted_bottleneck_is_the_papers():
    net = randomize(
        DeepMLP(8, 3, [5, 5, 6], "gelu", normalization="layer", block="inverted_bottleneck", expansion=3)
    ).eval()
    x = torch.randn(16, 8)
    stem, block, change = net.hidden
    h = F.linear(x, stem.linear.weight, stem.linear.bias)
    z = F.layer_norm(h, (5,), block.norm.weight, block.norm.bias)
    z = F.gelu(F.linear(z, block.linear.weight, block.linear.bias))
    h = h + F.linear(z, block.projection.weight, block.projection.bias)
    h = change.linear(h)
    expected = net.output(F.layer_norm(h, (6,), net.before_output.norm.weight, net.before_output.norm.bias))
    torch.testing.assert_close(net(x), expected)
    assert block.linear.weight.shape == (15, 5)
    assert [type(layer) for layer in net.hidden] == [nn.Sequential, Residual, nn.Sequential]


@pytest.mark.parametrize("block", ["residual", "inverted_bottleneck"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_a_block_is_a_choice_like_the_others(block, normalization):
    net = DeepMLP(
        12, 3, "4x6", "gelu", init="he_normal", normalization=normalization, block=block, dropout="standard",
        dropout_p=0.3, dropout_position="all", max_norm=0.5, l2=0.1,
    )  # fmt: skip
    x = torch.randn(7, 3, 4)
    net.constrain_()
    assert all(linear.weight.norm(dim=1).max() <= 0.5 + 1e-6 for linear in net.linears()[:-1])
    (F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2, 0])) + net.penalty()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    torch.testing.assert_close(net.eval()(x), net.as_sequential()(x))
    samples = mc_predict(net, x, samples=4)
    assert samples.mean.shape == (7, 3)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))


@pytest.mark.parametrize(
    ("normalization", "block", "bias"),
    [("batch", "residual", False), ("batch", "inverted_bottleneck", True), ("layer", "residual", True)],
)
def test_a_bias_stays_where_no_batch_norm_follows_directly(normalization, block, bias):
    net = DeepMLP(8, 3, [4, 4], "relu", normalization=normalization, block=block)
    assert all((linear.bias is not None) == bias for linear in net.linears()[:-1])


def test_dropout_is_inside_of_an_inverted_bottleneck():
    net = DeepMLP(8, 3, "3x4", "gelu", block="inverted_bottleneck", dropout="standard", dropout_position="all")
    assert [list(dict(layer.named_children())) for layer in net.hidden] == [
        ["linear"],
        *[["linear", "activation", "dropout", "projection"]] * 2,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "residul"}, "unknown block.*did you mean 'residual'"),
        ({"expansion": 0}, "expansion must be at least 1, got 0"),
        (
            {"block": "inverted_bottleneck", "normalization": "batch", "norm_position": "after_activation"},
            "norm_position must be 'before_activation'",
        ),
        (
            {"hidden_sizes": "4x10000", "block": "inverted_bottleneck"},
            "network too large: at most .* got",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        DeepMLP(**{"in_features": 8, "num_classes": 3, "hidden_sizes": [4, 4], "activation": "relu"} | options)


def test_a_network_with_skips_does_not_claim_to_normalize_itself():
    with pytest.warns(UserWarning, match="the blocks are residual: a skip connection adds its variance"):
        assert not DeepMLP(8, 3, [4, 4], block="residual").is_self_normalizing()
