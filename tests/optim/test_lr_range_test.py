import math
import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning.optim.lr_range_test import LRSweep, LRSweepError, find_lr, make_rates, run_sweep
from cifar_lightning.optim.lr_rules import RULES, climb, minimum, slide, steep, valley


def curve(num_steps=300, noise=0.0, seed=0):
    """A typical sweep: flat, falling around 1e-2, lowest at 1e-1, diverging beyond 1."""
    rng = random.Random(seed)
    lrs = make_rates(1e-5, 10.0, num_steps)
    losses = [2.3 - 1.0 / (1 + (1e-2 / lr) ** 1.5) + min(5.0, (lr / 0.6) ** 3) for lr in lrs]
    return LRSweep(lrs, [loss + rng.gauss(0, noise) for loss in losses], num_steps)


def fastai_valley(lrs, losses):
    """fastai's `valley`, as published."""
    n = len(losses)
    max_start, max_end = 0, 0
    lds = [1] * n
    for i in range(1, n):
        for j in range(0, i):
            if (losses[i] < losses[j]) and (lds[i] < lds[j] + 1):
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return lrs[max_start + int(sections) + int(sections / 2)]


def fastai_slide(lrs, losses, lr_diff=15, thresh=0.005):
    """fastai's `slide`, as published."""
    import numpy as np

    loss_grad = np.gradient(losses)
    r_idx = -1
    l_idx = r_idx - lr_diff
    local_min_lr = lrs[l_idx]
    while (l_idx >= -len(losses)) and (abs(loss_grad[r_idx] - loss_grad[l_idx]) > thresh):
        local_min_lr = lrs[l_idx]
        r_idx -= 1
        l_idx -= 1
    return local_min_lr


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_rules_are_fastais(noise, seed):
    sweep = curve(120, noise, seed)
    lrs, losses = sweep.lrs, sweep.losses if noise == 0.5 else sweep.smoothed
    assert valley(lrs, losses) == fastai_valley(lrs, losses)
    assert slide(lrs, losses) == fastai_slide(lrs, losses)
    slopes = torch.tensor(losses).diff() / torch.tensor(lrs).log().diff()
    assert steep(lrs, losses) == lrs[int(slopes.argmin())]
    assert minimum(lrs, losses) == lrs[int(torch.tensor(losses).argmin())] / 10


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_suggestions_are_where_the_loss_falls(noise):
    for seed in range(5):
        suggestions = curve(noise=noise, seed=seed).suggestions()
        assert list(suggestions) == ["valley", "steep", "minimum", "slide", "climb"]
        assert 5e-4 < suggestions["valley"] < 0.1
        assert 2e-3 < suggestions["minimum"] < 5e-2
        assert suggestions["minimum"] <= suggestions["climb"] < 0.1
        if noise == 0:
            assert 3e-3 < suggestions["steep"] < 4e-2  # against log lr: the inflection is at 1e-2


def test_climb_is_a_tenth_of_the_turn():
    lrs = make_rates(1e-4, 1.0, 41)
    losses = [2.0] * 10 + [2.0 - 0.1 * i for i in range(1, 11)] + [1.0] * 10 + [1.0 + 0.2 * i for i in range(1, 12)]
    assert climb(lrs, losses) == pytest.approx(lrs[30] / 10)


def test_smoothing_is_unbiased_from_the_first_step():
    constant = LRSweep(make_rates(1e-3, 1, 50), [3.0] * 50, 50)
    assert constant.smoothed == pytest.approx([3.0] * 50)
    noisy = curve(noise=0.3)
    assert noisy.losses != noisy.smoothed  # the raw losses are kept
    assert noisy.smoothed[0] == pytest.approx(noisy.losses[0])


@pytest.mark.parametrize("mode", ["exponential", "linear"])
def test_rates(mode):
    lrs = make_rates(1e-3, 1.0, 31, mode)
    assert (lrs[0], lrs[-1], len(lrs)) == (pytest.approx(1e-3), pytest.approx(1.0), 31)
    steps = [math.log(b / a) if mode == "exponential" else b - a for a, b in pairwise(lrs)]
    assert max(steps) == pytest.approx(min(steps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, 100), "wrong range of rates: expected 0 < min_lr < max_lr, received min_lr=1.0, max_lr=0.1"),
        ((0.0, 0.1, 100), "wrong range of rates"),
        ((0.1, math.nan, 100), "wrong range of rates"),
        ((0.1, 1.0, 9), "too short a sweep: expected num_steps >= 10, received 9"),
        ((0.1, 1.0, 10, "cubic"), "unknown mode: expected one of exponential, linear"),
    ],
)
def test_wrong_rates(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_rates(*arguments)


def test_a_sweep_stops_when_it_diverges():
    seen = []
    sweep = run_sweep(lambda lr: seen.append(lr) or (1.0 if len(seen) < 40 else 100.0), make_rates(1e-5, 1, 100))
    assert 40 <= len(sweep.lrs) < 45
    sweep = run_sweep(lambda lr: math.nan if lr > 0.1 else 1.0, make_rates(1e-5, 1, 100))
    assert math.isnan(sweep.losses[-1])
    assert not math.isnan(sweep.losses[-2])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([math.nan] * 100, "the sweep diverged at once: expected at least 10 finite losses, received 0"),
        ([2.0] * 5 + [math.inf], "diverged at once: .* received 5"),
        ([2.0] * 100, "the loss never descended"),
        ([2.0 + 0.01 * i for i in range(100)], "the loss never descended"),
        ([2.0 + random.Random(3).gauss(0, 0.3) for _ in range(1)] * 100, "the loss never descended"),
    ],
)
def test_refuses_to_suggest_nonsense(losses, message):
    sweep = LRSweep(make_rates(1e-5, 10, 100)[: len(losses)], losses, 100)
    for rule in RULES:
        with pytest.raises(LRSweepError, match=message):
            sweep.suggest(rule)


def test_noise_alone_is_no_descent():
    refused = 0
    for seed in range(200):
        rng = random.Random(seed)
        try:
            LRSweep(make_rates(1e-5, 10, 300), [2.3 + rng.gauss(0, 0.2) for _ in range(300)], 300).suggest()
        except LRSweepError:
            refused += 1
    assert refused > 180


def test_unknown_rule():
    with pytest.raises(ValueError, match="unknown rule: expected one of valley, steep, minimum, slide, climb"):
        curve().suggest("deepest")


def problem():
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 4)).argmax(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    )
    return model, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def test_find_lr_for_plain_pytorch_leaves_everything_as_it_was():
    model, loader = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    model.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    sweep = find_lr(model, optimizer, F.cross_entropy, loader, num_steps=120)  # 15 passes
    assert 1e-4 < sweep.suggest() < 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert optimizer.param_groups[0]["lr"] == 0.123
    assert not optimizer.state
    assert not model.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_find_lr_needs_data():
    model, _ = problem()
    with pytest.raises(ValueError, match="expected a loader with at least one batch, received an empty one"):
        find_lr(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy, [])
