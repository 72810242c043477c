import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import AlphaDropout, DeepMLP, LayerSignal, measure_signals
from cifar_lightning.nn.alpha_dropout import SELU_ALPHA, SELU_LAMBDA, affine_correction


def data(count=500, features=100):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=generator)
    return x, torch.randint(10, (count,), generator=generator)


def make(seed=0, **network):
    torch.manual_seed(seed)
    return DeepMLP(**{"in_features": 100, "hidden_sizes": "5x40"} | network)


def test_the_figures_are_those_of_a_computation_by_hand():
    net = make(hidden_sizes=[30])
    x, y = data(50)
    hidden = net.hidden(x).detach().requires_grad_()
    F.cross_entropy(net.output(hidden), y, reduction="sum").backward()
    (signal,) = measure_signals(net, net.hidden, x, y)
    # The chapter's: np.std(Z, axis=0).mean()
    expected = (
        hidden.mean(),
        hidden.std(0, correction=0).mean(),
        hidden.grad.mean(),
        hidden.grad.std(0, correction=0).mean(),
        torch.ones(()),
    )
    received = (
        signal.activation_mean,
        signal.activation_std,
        signal.gradient_mean,
        signal.gradient_std,
        signal.input_share,
    )
    torch.testing.assert_close(torch.tensor(received), torch.stack(expected).detach(), rtol=1e-4, atol=1e-7)


def test_the_number_of_examples_does_not_scale_the_gradients():
    net = make()
    x, y = data(20)
    once, twice = (measure_signals(net, net.hidden, x.repeat(n, 1), y.repeat(n)) for n in (1, 2))
    for one, two in zip(once, twice, strict=True):
        assert one.gradient_std == pytest.approx(two.gradient_std, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training):
    net = make(normalization="batch", norm_input=True, dropout="standard", dropout_position="input_and_all")
    net.train(training)
    net.hidden[1].eval()  # a mode of its own
    x, y = data()
    net.output.weight.grad = gradient = torch.ones_like(net.output.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, pointers = ([m.training for m in net.modules()], [b.data_ptr() for b in net.buffers()])
    state = torch.get_rng_state()
    with torch.no_grad():  # whatever stands around it
        measure_signals(net, [net.input, *net.hidden], x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == modes
    assert [b.data_ptr() for b in net.buffers()] == pointers
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert net.output.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(p.grad is None for p in net.hidden.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    assert not x.requires_grad


def test_a_failure_leaves_no_hook_behind():
    net = make()
    x, y = data()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="wrong input shape"):
        measure_signals(net, net.hidden, x[:, :50], y)
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="nothing to measure: expected layers that the network calls"):
        measure_signals(net, [nn.ReLU()], x, y)


def test_the_share_that_alpha_dropout_leaves_of_its_input():
    """Of y = a(xd + α'(1-d)) + b with Var x = 1: Cov(y, y') = a²q² for two masks d and d', and Var y = 1."""
    p = 0.1
    drop = AlphaDropout(p)
    net = nn.Sequential(drop, nn.Linear(100, 10))
    x, y = data(2000)
    torch.manual_seed(0)
    (signal,) = measure_signals(net, [drop], x, y)
    a, _ = affine_correction(p)
    assert signal.input_share == pytest.approx((a * (1 - p)) ** 2, abs=0.01)
    assert signal.activation_std == pytest.approx(1, abs=0.01)
    (evaluated,) = measure_signals(net.eval(), [drop], x, y)
    assert evaluated.input_share == pytest.approx(1)


def test_any_network_and_frozen_ones():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
    net.requires_grad_(False)
    x = torch.randn(30, 3, 8, 8)
    relu, logits = measure_signals(net, [net[1], net[3]], x, torch.zeros(30, dtype=torch.long))
    assert relu.activation_mean == pytest.approx(net[:2](x).mean().item(), rel=1e-5)
    assert logits.gradient_std > 0


def test_what_leaves_the_range_is_shown_as_it_is():
    x, y = data()
    net = make(hidden_sizes="20x40", activation="relu")
    with torch.no_grad():
        for linear in net.linears():
            linear.weight *= 1e6
    last = measure_signals(net, net.hidden, x, y)[-1]
    assert not math.isfinite(last.activation_std)
    with torch.no_grad():
        for linear in net.linears():
            linear.weight *= 1e-12
    signals = measure_signals(net, net.hidden, x, y)
    assert signals[-1].activation_std == 0
    assert signals[0].gradient_std == 0
    assert signals[4].activation_std == pytest.approx(signals[3].activation_std * 1e-6, rel=0.9)  # ~1e-32, whose square
    assert signals[4].activation_std > 0  # is no float32 any more


# The fixed point is the limit of infinite width. The weights into one of 100 units sum to 0 ± 1 and their squares to
# 1 ± 0.1, so what a layer hands on wanders about it; on four seeds, the farthest of 1,000 means was 0.12 and the
# farthest deviations 0.80 and 1.05. The chapter's own printout has 0.83 to 1.00.
def test_a_thousand_selu_layers_keep_mean_0_and_deviation_1():
    x, y = data(500)
    net = make(hidden_sizes="1000x100")
    signals = measure_signals(net, net.hidden, x, y)
    assert len(signals) == 1000
    for layer, signal in enumerate(signals):
        assert abs(signal.activation_mean) < 0.2, layer
        assert 0.7 < signal.activation_std < 1.15, layer
    mean = sum(signal.activation_mean for signal in signals) / 1000
    std = sum(signal.activation_std for signal in signals) / 1000
    assert mean == pytest.approx(0, abs=0.02)
    assert std == pytest.approx(0.93, abs=0.03)  # and not 1: the mean of a standard deviation lies below


def test_wider_layers_come_closer():
    """The deviation of a layer from its fixed point is of order 1/sqrt(width)."""
    x, y = data(200)
    worst = {}
    for width in (30, 300):
        net = make(hidden_sizes=f"50x{width}")
        signals = measure_signals(net, net.hidden, x, y)
        worst[width] = max(abs(signal.activation_std - 1) for signal in signals)
    assert worst[300] < worst[30] / 2


def test_he_and_relu_can_not_tell_the_examples_apart():
    x, y = data(500)
    relu, selu = make(hidden_sizes="100x100", activation="relu", init="he_normal"), make(hidden_sizes="100x100")
    last = [measure_signals(net, net.hidden, x, y)[-1].activation_std for net in (relu, selu)]
    assert last[0] < 0.2 < 0.7 < last[1]


def test_selu_keeps_activations_but_not_gradients():
    """Backward, a variance grows by E[selu'(z)²] = λ²(1/2 + α² e² Φ(-2)) = 1.072 a layer, where z is N(0, 1)."""
    x, y = data(200)
    net = make(hidden_sizes="40x300")
    signals = measure_signals(net, net.hidden, x, y)
    growth = (signals[0].gradient_std / signals[-1].gradient_std) ** (2 / 39)
    expected = SELU_LAMBDA**2 * (0.5 + SELU_ALPHA**2 * math.exp(2) * (1 + math.erf(-math.sqrt(2))) / 2)
    assert growth == pytest.approx(expected, abs=0.03)


def test_a_signal_is_shown_in_a_line():
    signal = LayerSignal(1 / 3, 1.0, -1.23456e-9, math.nan, 1.0)
    assert repr(signal) == (
        "LayerSignal(activation_mean=0.333, activation_std=1, gradient_mean=-1.23e-09, gradient_std=nan, input_share=1)"
    )
