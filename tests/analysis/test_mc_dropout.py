import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from cifar_lightning import AlphaDropout, DeepMLP, mc_dropout, mc_predict
from cifar_lightning.analysis.mc_dropout import entropy, split_at_first_dropout

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


def network(position="all", **options):
    torch.manual_seed(0)
    return DeepMLP(8, 3, [16, 16], dropout="alpha", dropout_p=0.3, dropout_position=position, **options).eval()


class Branched(nn.Module):
    """A module that is no chain, with torch's dropout."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 3), nn.Dropout(0.4)

    def forward(self, x):
        return self.linear(self.dropout(x)) + self.linear(x)


@pytest.mark.filterwarnings("ignore:this SELU network")
def test_only_dropout_becomes_active_and_modes_return():
    net = network(normalization="batch")
    net.hidden[1].train()
    before = [m.training for m in net.modules()]
    mean = net.hidden[0].norm.running_mean.clone()

    def sample_and_fail():
        with mc_dropout(net):
            for m in net.modules():
                assert m.training == isinstance(m, AlphaDropout)
            assert not torch.equal(net(X), net(X))
            raise KeyError("out")

    with pytest.raises(KeyError, match="out"):
        sample_and_fail()
    assert [m.training for m in net.modules()] == before
    assert torch.equal(net.hidden[0].norm.running_mean, mean)


@pytest.mark.parametrize("make", [network, lambda: network("last"), lambda: network("input_and_all"), Branched])
@pytest.mark.parametrize("batch", [5, 12, 100, 1000])
def test_moments_are_those_of_the_samples(make, batch):
    net = make()
    prediction = mc_predict(net, X, samples=37, batch=batch, return_samples=True)
    p = prediction.samples
    assert p.shape == (37, 12, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(37, 12))
    torch.testing.assert_close(prediction.mean, p.mean(0))
    torch.testing.assert_close(prediction.std, p.std(0, correction=0), atol=1e-6, rtol=1e-4)
    samples = p.double().numpy()
    total = scipy.stats.entropy(samples.mean(0), axis=-1)
    expected = scipy.stats.entropy(samples, axis=-1).mean(0)
    np.testing.assert_allclose(prediction.predictive_entropy, total, rtol=1e-4)
    np.testing.assert_allclose(prediction.expected_entropy, expected, rtol=1e-4)
    np.testing.assert_allclose(prediction.mutual_information, total - expected, atol=1e-5)
    votes = scipy.stats.mode(samples.argmax(-1), axis=0).count
    np.testing.assert_allclose(prediction.disagreement, 1 - votes / 37, atol=1e-6)


@pytest.mark.parametrize("make", [network, Branched])
def test_passes_are_those_of_a_naive_loop(make):
    # Not the same masks, but the same distribution: means within five standard errors.
    net, samples = make(), 4000
    with torch.no_grad(), mc_dropout(net):
        naive = torch.stack([net(X).softmax(-1) for _ in range(samples)])
    prediction = mc_predict(net, X, samples)
    error = (naive.var(0) / samples + prediction.std**2 / samples).sqrt()
    assert ((prediction.mean - naive.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(prediction.std, naive.std(0), atol=0.01, rtol=0.1)


@pytest.mark.parametrize("layer", [AlphaDropout, nn.Dropout])
def test_dropout_in_place_does_not_spoil_the_next_pass(layer):
    torch.manual_seed(0)
    output = nn.Linear(8, 3)
    means = []
    for inplace in (False, True):
        net = nn.Sequential(layer(0.3, inplace=inplace), output).eval()
        means.append(mc_predict(net, X, samples=200, batch=24, seed=1).mean)
    assert torch.equal(*means)


def test_samples_of_an_example_and_examples_of_a_pass_are_independent():
    x = X[:1].repeat(50, 1)
    p = mc_predict(network(), x, samples=20, return_samples=True).samples
    assert len({tuple(row.tolist()) for row in p.flatten(0, 1)}) == 50 * 20


def test_a_seed_makes_it_reproducible_and_leaves_the_global_generator_alone():
    net = network()
    state = torch.get_rng_state()
    first, second, other = (mc_predict(net, X, 10, seed=seed).mean for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_precedes_the_first_dropout_is_computed_once():
    net, calls = network("last"), []
    net.hidden[0].linear.register_forward_hook(lambda *_: calls.append(1))
    mc_predict(net, X, samples=50, batch=12)
    assert len(calls) == 1
    prefix, suffix = split_at_first_dropout(network())
    torch.testing.assert_close(suffix.eval()(prefix(X)), network()(X))


def test_memory_does_not_grow_with_the_samples():
    largest = 0
    net = network()

    def note(module, args, output):
        nonlocal largest
        largest = max(largest, len(output))

    net.output.register_forward_hook(note)
    mc_predict(net, X, samples=1000, batch=60)
    assert largest == 60
    assert mc_predict(net, X, samples=3).samples is None


@pytest.mark.parametrize("net", [DeepMLP(8, 3, [4]), DeepMLP(8, 3, [4], dropout="alpha", dropout_p=0.0)])
def test_nothing_to_sample(net):
    with pytest.raises(ValueError, match="Monte-Carlo dropout has nothing to sample: expected a network with"):
        mc_predict(net, X)


def test_wrong_numbers():
    with pytest.raises(ValueError, match="expected samples >= 1 and batch >= 1, received samples=0, batch=5"):
        mc_predict(network(), X, samples=0, batch=5)


def test_entropy():
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0
    assert entropy(torch.full((10,), 0.1)).item() == pytest.approx(np.log(10))
