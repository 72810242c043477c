import pytest
import torch
from small_networks import make_images, make_network

from cifar_lightning import mc_predict
from cifar_lightning.export.sampled_network import SampledNetwork, SeededDropout, hash_32
from cifar_lightning.nn.alpha_dropout import AlphaDropout

NOISY = [{"dropout": kind, "dropout_p": 0.3, "dropout_position": where}
         for kind in ("standard", "alpha") for where in ("last", "all", "input_and_all")]  # fmt: skip

BLOCKS = [{"dropout": "standard", "dropout_p": 0.3, "dropout_position": "all", "hidden_sizes": [9, 9, 9],
           "activation": "gelu", "normalization": "layer", "block": block}
          for block in ("residual", "inverted_bottleneck")]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    NOISY + BLOCKS,
    ids=lambda options: f"{options['dropout']} {options.get('block', options['dropout_position'])}",
)
def test_its_moments_are_those_of_mc_predict(options):
    network, images = make_network(**options), make_images(6)
    mean, std, information = SampledNetwork(network)(images, torch.arange(20_000))
    expected = mc_predict(network.as_sequential(), images, samples=20_000, seed=1)
    # The standard error of a mean of 20,000 numbers from 0 to 1 is below 0.0036.
    torch.testing.assert_close(mean, expected.mean, atol=0.015, rtol=0)
    torch.testing.assert_close(std, expected.std, atol=0.015, rtol=0)
    torch.testing.assert_close(information, expected.mutual_information, atol=0.02, rtol=0)


@pytest.mark.parametrize("options", NOISY + BLOCKS, ids=str)
def test_with_nothing_dropped_it_is_the_network(options):
    network, images = make_network(**options), make_images(6)
    sampled = SampledNetwork(network)
    for layer in sampled.modules():
        if isinstance(layer, SeededDropout):
            layer.p, layer.scale, layer.shift = 0.0, 1.0, 0.0
    mean, std, _ = sampled(images, torch.arange(3))
    torch.testing.assert_close(mean, network.predict_proba(images))
    torch.testing.assert_close(std, torch.zeros_like(std), atol=1e-6, rtol=0)


def test_the_seeds_decide():
    network = SampledNetwork(make_network(dropout="alpha", dropout_p=0.5))
    images = make_images()
    first, again, other = (network(images, torch.tensor([seed]))[0] for seed in (3, 3, 2**40 + 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    both = network(images, torch.tensor([3, 2**40 + 5]))[0]
    torch.testing.assert_close(both, (first + other) / 2)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_units_are_dropped_at_the_rate_and_independently_of_each_other(p):
    layer = SeededDropout(torch.nn.Dropout(p), 0)
    dropped = (layer(torch.ones(1, 50, 40), torch.arange(200)) == 0).double()
    n = dropped.numel()
    assert abs(dropped.mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    rows = dropped.reshape(200, -1) - p
    for a, b in ((rows[:-1], rows[1:]), (rows[:, :-1], rows[:, 1:])):  # passes, and units, beside each other
        assert abs((a * b).mean()) < 5 * p * (1 - p) / n**0.5


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.randn(1, 400, 50)
    y = SeededDropout(AlphaDropout(0.3), 0)(x, torch.arange(20))
    assert abs(y.mean() - x.mean()) < 0.02
    assert abs(y.std() - x.std()) < 0.02


def test_the_hash_is_one_to_one_and_stays_in_32_bits():
    hashed = hash_32(torch.cat([torch.arange(100_000), 2**32 - 1 - torch.arange(100_000)]))
    assert len(hashed.unique()) == 200_000
    assert 0 <= hashed.min() < hashed.max() < 2**32


@pytest.mark.parametrize("options", [{}, {"dropout": "alpha", "dropout_p": 0.0}])
def test_a_network_without_dropout(options):
    with pytest.raises(ValueError, match="nothing to sample: expected a network with dropout, p > 0"):
        SampledNetwork(make_network(**options))
