import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import DEVICE
from networks import NETWORKS, Beside, Functional, Residual, deep, encoder
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from cifar_lightning import AlphaDropout, DeepMLP, MLPClassifier, mc_dropout, mc_predict
from cifar_lightning.analysis.mc_dropout import dropout_modules, entropy, split_at_first_dropout
from cifar_lightning.compiled.hooks import has_hooks

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)

pytestmark = pytest.mark.usefixtures("on_device")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network(position="all", **options):
    torch.manual_seed(0)
    return DeepMLP(8, 3, [16, 16], dropout="alpha", dropout_p=0.3, dropout_position=position, **options).eval()


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


@pytest.mark.parametrize("make", [network, lambda: network("last"), lambda: network("input_and_all"), Residual])
@pytest.mark.parametrize("batch", [5, 12, 100, 1000])
def test_moments_are_those_of_the_samples(make, batch):
    net = make()
    prediction = mc_predict(net, X, samples=37, batch=batch, return_samples=True)
    p = prediction.samples
    assert p.shape == (37, 12, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(37, 12))
    torch.testing.assert_close(prediction.mean, p.mean(0))
    torch.testing.assert_close(prediction.std, p.std(0, correction=0), atol=1e-6, rtol=1e-4)
    samples = p.double().cpu().numpy()
    total = scipy.stats.entropy(samples.mean(0), axis=-1)
    expected = scipy.stats.entropy(samples, axis=-1).mean(0)
    np.testing.assert_allclose(prediction.predictive_entropy.cpu(), total, rtol=1e-4)
    np.testing.assert_allclose(prediction.expected_entropy.cpu(), expected, rtol=1e-4)
    np.testing.assert_allclose(prediction.mutual_information.cpu(), total - expected, atol=1e-5)
    votes = scipy.stats.mode(samples.argmax(-1), axis=0).count
    np.testing.assert_allclose(prediction.disagreement.cpu(), 1 - votes / 37, atol=1e-6)


def assert_same_distribution(prediction, samples):
    """Means within five standard errors, and standard deviations alike."""
    n = len(samples)
    error = (samples.var(0) / n + prediction.std**2 / n).sqrt()
    assert ((prediction.mean - samples.mean(0)).abs() < 5 * error + 1e-6).all()
    torch.testing.assert_close(prediction.std, samples.std(0), atol=0.03, rtol=0.2)


@torch.no_grad()
def sampled(net, x, samples):
    return torch.stack([net(x.clone()).softmax(-1) for _ in range(samples)])


@pytest.mark.parametrize("make", [*NETWORKS.values(), network], ids=[*NETWORKS, "alpha"])
def test_passes_are_those_of_training_mode_but_for_norms(make):
    # Not the same masks, but the same distribution, and it is wide.
    torch.manual_seed(0)
    net, x = make().eval(), X[:4]
    for module in net.modules():
        module.training = not isinstance(module, nn.BatchNorm1d)
    expected = sampled(net, x, 2000)
    net.eval()
    prediction = mc_predict(net, x, 2000)
    assert expected.std(0).mean() > 0.01
    assert_same_distribution(prediction, expected)
    with mc_dropout(net):
        within = sampled(net, x, 2000)
    assert_same_distribution(prediction, within)
    assert not any(m.training for m in net.modules())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_the_split_is_the_same_function(make):
    torch.manual_seed(0)
    net = make().eval()
    outputs = []
    prefix, suffix = split_at_first_dropout(net)
    for function in (net, lambda x: suffix(prefix(x))):
        torch.manual_seed(1)
        outputs.append(function(X.clone()))
    assert torch.equal(*outputs)


class OtherOptimizer(MLPClassifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def test_the_split_is_taken_where_the_layers_are_known():
    def lengths(net):
        return [len(part) for part in split_at_first_dropout(net)]

    assert lengths(network("last")) == [5, 2]  # flatten, twice (linear, activation); dropout, output
    assert lengths(network("input_and_all"))[0] == 1
    torch.manual_seed(0)
    assert lengths(MLPClassifier(hidden_sizes=[4, 4], dropout="alpha")) == [6, 3]
    assert lengths(OtherOptimizer(hidden_sizes=[4, 4], dropout="alpha")) == [6, 3]
    assert lengths(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Dropout(0.2)))) == [2, 1]
    assert lengths(nn.Sequential(nn.Linear(8, 8), Beside())) == [1, 1]


def test_the_values_of_the_issue():
    class Zero(DeepMLP):
        def forward(self, x):
            return super().forward(x) * 0

    class ZeroClassifier(MLPClassifier):
        def forward(self, images):
            return super().forward(images) * 0

    net = Zero(8, 5, [16], dropout="alpha", dropout_p=0.3)
    torch.testing.assert_close(mc_predict(net, X).mean, torch.full((12, 5), 0.2))
    classifier = ZeroClassifier(hidden_sizes=[4], dropout="alpha", dropout_p=0.3)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    torch.testing.assert_close(mc_predict(classifier, images).mean, torch.full((2, 10), 0.1))


def add(amount):
    return lambda module, args, output=None: args[0] + amount if output is None else output * amount


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["", "hidden", "hidden.0", "hidden.0.linear", "output"])
def test_hooks_run(kind, place):
    net = deep().eval()
    getattr(net.get_submodule(place), kind)(add(3))
    prediction = mc_predict(net, X, 2000)
    with mc_dropout(net):
        assert_same_distribution(prediction, sampled(net, X, 2000))


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks_run(register):
    net, called = deep().eval(), set()
    handle = register(lambda module, *_: called.add(module))
    try:
        mc_predict(net, X, 2)
    finally:
        handle.remove()
    assert {net, net.hidden, net.output} <= called


def test_a_hook_that_adds_noise_adds_it_in_every_pass():
    net = network("last")
    net.hidden[0].linear.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    with mc_dropout(net):
        assert_same_distribution(mc_predict(net, X, 2000), sampled(net, X, 2000))


def test_a_replaced_forward_of_a_class_runs(monkeypatch):
    monkeypatch.setattr(DeepMLP, "forward", lambda self, x: self.output(self.hidden(self.input(x))) * 0)
    torch.testing.assert_close(mc_predict(network(), X).mean, torch.full((12, 3), 1 / 3))


def test_a_trial_leaves_everything_as_it_was():
    net = nn.Sequential(Functional(), nn.Identity())
    net[0].norm.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, generator, x = [m.training for m in net.modules()], torch.get_rng_state(), X.clone()
    mc_predict(net, x, 10, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert not any(map(has_hooks, net.modules()))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, X)


class OwnNorm(nn.Module):
    """A batch normalization written by hand, perhaps with dropout."""

    def __init__(self, p, inplace=True):
        super().__init__()
        self.p, self.inplace = p, inplace
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            if self.inplace:
                self.mean.lerp_(x.mean(0), 0.1)
            else:
                self.mean = self.mean.lerp(x.mean(0), 0.1)
        return F.dropout(x - self.mean, self.p, self.training)


def test_layers_in_place_do_not_spoil_the_input():
    net, x = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3)), X.clone()
    mc_predict(net, x, 5)
    assert torch.equal(x, X)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_normalization_of_ones_own_stays_in_evaluation_mode(inplace):
    net = nn.Sequential(OwnNorm(0.0, inplace), nn.Dropout(0.5), nn.Linear(8, 3))
    with mc_dropout(net):
        sampled(net, X, 3)
        assert not net[0].training
    assert not net[0].mean.any()


def test_a_part_that_only_training_mode_calls_has_a_trial_of_its_own():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = OwnNorm(0.0), nn.Linear(8, 3)

        def forward(self, x):
            x = F.dropout(x, 0.5, self.training)
            return self.linear(self.norm(x) if self.training else x)

    net = Branch()
    with mc_dropout(net):
        sampled(net, X, 3)
        assert [m.training for m in net.modules()] == [True, False, False]
    assert not net.norm.mean.any()


@pytest.mark.parametrize("inplace", [True, False])
def test_dropout_that_cannot_be_switched_on_alone_is_named(inplace):
    with pytest.raises(ValueError, match=r"can't sample 0 \(OwnNorm\): .* got one that also changes mean"):
        mc_predict(nn.Sequential(OwnNorm(0.5, inplace), nn.Dropout(0.5), nn.Linear(8, 3)), X)


def test_what_cannot_be_looked_into_is_named():
    class NeedsTargets(nn.Module):
        def forward(self, x, target=None):
            return F.cross_entropy(x, target) if self.training else x

    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3), NeedsTargets())
    with pytest.warns(UserWarning, match=r"look for dropout in 2 \(NeedsTargets\)"):
        assert mc_predict(net, X).std.mean() > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"can't find dropout in TorchScript: .* got 1 \("):
        mc_predict(nn.Sequential(nn.Dropout(0.1), scripted), X)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.InstanceNorm1d(8, track_running_stats=True), nn.RReLU()])
def test_what_is_no_dropout_stays_in_evaluation_mode(norm):
    net = nn.Sequential(nn.Unflatten(1, (8, 1)), norm, nn.Flatten(), encoder()).to(DEVICE).train()
    x, before = torch.randn(5, 8), [buffer.clone() for buffer in norm.buffers()]
    with mc_dropout(net):
        net(x)
        assert not norm.training
    assert norm.training
    assert all(map(torch.equal, norm.buffers(), before))


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = Residual(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y, "loss": y.sum()}, lambda y: SimpleNamespace(logits=y), lambda y: y.double()]
)
def test_logits_by_name(wrap):
    torch.manual_seed(0)
    net = Wrapped(wrap).eval()
    torch.testing.assert_close(mc_predict(net, X, 9, seed=1).mean, mc_predict(net.net, X, 9, seed=1).mean)


@pytest.mark.parametrize(
    ("wrap", "received"),
    [
        (lambda y: (y, y), "a tuple"),
        (lambda y: {"output": y}, "a dict"),
        (lambda y: y[:, 0], r"the shape \(2,\)"),
        (lambda y: y[:, :1], r"the shape \(2, 1\)"),
        (lambda y: y[:, None], r"the shape \(2, 1, 3\)"),
        (lambda y: y[:1], r"the shape \(1, 3\)"),
    ],
)
def test_other_outputs_are_refused(wrap, received):
    with pytest.raises(ValueError, match=rf"wrong output of Wrapped: expected logits of shape .* got {received}"):
        mc_predict(Wrapped(wrap), X)


def test_compiled_networks_are_sampled():
    torch.manual_seed(0)
    net = Functional().eval()
    compiled = torch.compile(net, backend="eager")
    with mc_dropout(net):
        expected = sampled(net, X, 2000)
    assert_same_distribution(mc_predict(compiled, X, 2000), expected)


def test_dropout_of_torch_is_found_by_its_public_classes():
    class Own(nn.Dropout2d):
        pass

    there = [
        nn.Dropout(0.1),
        Own(0.1),
        AlphaDropout(0.1),
        nn.LSTM(2, 2, 2, dropout=0.1),
        nn.MultiheadAttention(2, 1, 0.1),
    ]
    absent = [nn.Dropout(0.0), nn.LSTM(2, 2, 1), nn.MultiheadAttention(2, 1), nn.RReLU(), nn.Identity()]
    assert dropout_modules(nn.ModuleList([*there, *absent])) == there


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


class Undropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return F.dropout(self.linear(x), 0.0, self.training)


@pytest.mark.parametrize(
    "net",
    [DeepMLP(8, 3, [4]), DeepMLP(8, 3, [4], dropout="alpha", dropout_p=0.0), Undropped(), nn.Sequential(Undropped())],
)
def test_nothing_to_sample(net):
    with pytest.raises(ValueError, match="Monte-Carlo dropout has nothing to sample: expected a network with"):
        mc_predict(net.to(DEVICE), X)


def test_wrong_numbers():
    with pytest.raises(ValueError, match="samples and batch must be at least 1, got samples=0, batch=5"):
        mc_predict(network(), X, samples=0, batch=5)


def test_entropy():
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0
    assert entropy(torch.full((10,), 0.1)).item() == pytest.approx(np.log(10))


@pytest.mark.parametrize(
    ("count", "kept", "text"),
    [
        (12, False, r"MCPrediction\(12 examples, 3 classes: mean confidence 0\.\d{3}, mean MI 0\.\d{3} nats\)"),
        (12, True, r"MCPrediction\(12 examples, 3 classes, 5 samples: mean confidence .*\)"),
        (0, False, r"MCPrediction\(0 examples, 3 classes\)"),
    ],
)
def test_a_prediction_is_shown_in_a_line(count, kept, text):
    assert re.fullmatch(text, repr(mc_predict(network(), X[:count], 5, return_samples=kept)))
