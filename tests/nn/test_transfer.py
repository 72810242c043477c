import pytest
import torch

from cifar_lightning import DeepMLP, copy_hidden_layers

pytestmark = pytest.mark.usefixtures("on_device")


def net(**options):
    return DeepMLP(**{"in_features": 12, "hidden_sizes": [6, 5, 4], "activation": "elu"} | options)


def trained(**options):
    """A network whose every parameter and running statistic has moved."""
    network = net(**options)
    network.train()(torch.randn(50, 12) * 3 + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.rand_like(parameter)
    return network.eval()


@pytest.mark.parametrize("layers", [None, 1, 2, 3])
def test_the_first_layers_are_the_pretrained_ones_and_the_others_are_not(layers):
    options = {"normalization": "batch", "norm_input": True}
    source, target = trained(num_classes=8, **options), net(num_classes=2, **options)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    count = copy_hidden_layers(source, target, layers)
    assert count == (layers or 3)
    x = torch.randn(7, 12)
    ours = target.eval().hidden[:count](target.input(x))
    assert torch.equal(ours, source.hidden[:count](source.input(x)))
    reused = ("input.", *(f"hidden.{k}." for k in range(count)))
    for name, value in target.state_dict().items():
        expected = source.state_dict()[name] if name.startswith(reused) else before[name]
        assert torch.equal(value, expected), name


def test_the_networks_share_nothing():
    source, target = trained(), net()
    expected = source.hidden[0].linear.weight.clone()
    copy_hidden_layers(source, target)
    with torch.no_grad():
        target.hidden[0].linear.weight += 1
    assert torch.equal(source.hidden[0].linear.weight, expected)


def test_output_dropout_and_further_layers_may_differ():
    target = net(hidden_sizes=[6, 5, 4, 3], num_classes=2, dropout="standard", dropout_position="input_and_all")
    assert copy_hidden_layers(trained(), target) == 3


@pytest.mark.parametrize(
    ("options", "layers", "message"),
    [
        (
            {"hidden_sizes": [6, 7, 4]},
            None,
            r"hidden layer 2 differs from the pretrained one: expected Linear\(in_features=6, out_features=5, "
            r"bias=True\), ELU\(alpha=1.0\); got Linear\(in_features=6, out_features=7, bias=True\), ELU",
        ),
        ({"in_features": 11}, 1, r"hidden layer 1 differs .*expected Linear\(in_features=12.*in_features=11"),
        ({"activation": "relu"}, 1, r"expected .*ELU\(alpha=1.0\); got .*ReLU\(\)"),
        ({"activation_args": {"alpha": 0.5}}, 1, r"got .*ELU\(alpha=0.5\)"),
        ({"normalization": "batch"}, 1, r"got .*BatchNorm1d\(6"),
        ({"bias": False}, 1, "bias=True.*got .*bias=False"),
        ({"hidden_sizes": [6, 6, 4], "block": "residual"}, 2, r"hidden layer 2 differs .*got x \+ \(Linear"),
        (
            {"normalization": "layer", "norm_input": True},
            1,
            r"input differs from the pretrained one: expected none; got LayerNorm",
        ),
        ({"hidden_sizes": [6, 5]}, None, "pretrained_layers must be 1 to 2, with 3 .* got 3"),
        ({}, 4, "must be 1 to 3, with 3 hidden layers in the pretrained network and 3 in this one; got 4"),
        ({}, 0, "must be 1 to 3.*got 0"),
    ],
)
def test_another_architecture_is_refused_before_anything_is_copied(options, layers, message):
    target = net(**options)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        copy_hidden_layers(trained(), target, layers)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_norm_on_the_other_side_of_the_activation_is_another_layer():
    target = net(normalization="layer", norm_position="after_activation")
    with pytest.raises(ValueError, match="expected .*LayerNorm.*ELU.*; got .*ELU.*LayerNorm"):
        copy_hidden_layers(trained(normalization="layer"), target)
