import math
import random
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning.optim.lr_descent import descends, falls_at_once, falls_in_mean, falls_in_rank, noise
from cifar_lightning.optim.lr_range_test import (
    MAX_BATCHES,
    LRSweep,
    LRSweepError,
    count_batches,
    endless,
    find_lr,
    group_factors,
    make_rates,
    run_sweep,
)
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
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_rules_are_fastais(spread, seed):
    sweep = curve(120, spread, seed)
    lrs, losses = sweep.lrs, sweep.losses if spread == 0.5 else sweep.smoothed
    assert valley(lrs, losses) == fastai_valley(lrs, losses)
    assert slide(lrs, losses) == fastai_slide(lrs, losses)
    slopes = torch.tensor(losses).diff() / torch.tensor(lrs).log().diff()
    assert steep(lrs, losses) == lrs[int(slopes.argmin())]
    assert minimum(lrs, losses) == lrs[int(torch.tensor(losses).argmin())] / 10


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_suggestions_are_where_the_loss_falls(spread):
    for seed in range(5):
        suggestions = curve(noise=spread, seed=seed).suggestions()
        assert list(suggestions) == ["valley", "steep", "minimum", "slide", "climb"]
        assert 5e-4 < suggestions["valley"] < 0.1
        assert 2e-3 < suggestions["minimum"] < 5e-2
        assert suggestions["minimum"] <= suggestions["climb"] < 0.1
        if spread == 0:
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
        ((1.0, 0.1, 100), "expected learning rates 0 < min_lr < max_lr, got min_lr=1.0, max_lr=0.1"),
        ((0.0, 0.1, 100), "expected learning rates 0 < min_lr < max_lr"),
        ((0.1, math.nan, 100), "expected learning rates 0 < min_lr < max_lr"),
        ((0.1, 1.0, 9), "the sweep is too short: num_steps must be at least 10, got 9"),
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_no_rate_whose_loss_is_no_number_is_suggested(rule, value):
    lrs = make_rates(1e-5, 1.0, 100)
    sweep = run_sweep(lambda lr: value if lr > 0.1 else 2.3 / (1 + 100 * lr), lrs)
    assert 1e-5 <= sweep.suggest(rule) <= 0.1


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([math.nan] * 100, "the sweep diverged at once: expected at least 10 finite losses, got 0"),
        ([2.0] * 5 + [math.inf], "diverged at once: .* got 5"),
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


def test_valley_is_the_first_rate_where_only_the_first_loss_falls():
    # fastai's own index is -1 here: the highest rate.
    assert valley([1e-4, 1e-3, 1e-2, 0.1, 1.0], [3.0, 1.0, 4.0, 5.0, 6.0]) == 1e-4
    assert valley([1e-3, 1e-2, 0.1], [1.0, 1.0, 1.0]) == 1e-3


losses = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60)


@given(losses=losses)
def test_no_rule_leaves_the_swept_rates(losses):
    lrs = make_rates(1e-4, 1.0, 60)[: len(losses)]
    for rule in RULES.values():
        assert lrs[0] <= rule(lrs, losses) <= lrs[-1]


@given(losses=st.lists(st.floats(1e-3, 10), min_size=10, max_size=60), start=st.floats(1, 1e3))
def test_no_suggestion_leaves_the_swept_rates(losses, start):
    sweep = LRSweep(make_rates(1e-4, 1.0, 70)[: len(losses) + 10], [start] * 10 + losses, 70)
    try:
        suggestions = sweep.suggestions()
    except LRSweepError:
        return
    assert all(sweep.lrs[0] <= lr <= sweep.lrs[-1] for lr in suggestions.values())


DRAWS = {
    "exponential": lambda n: torch.distributions.Exponential(1.0).sample((n,)),
    "one squared error": lambda n: torch.randn(n) ** 2,
    "log-normal": lambda n: torch.randn(n).mul(2).exp(),
    "normal": lambda n: 2.3 + 0.2 * torch.randn(n),
    "mean 1": lambda n: 1 + torch.randn(n),
    "heavy tails": lambda n: 10 + torch.distributions.StudentT(2.0).sample((n,)),
    "Pareto": lambda n: torch.distributions.Pareto(1.0, 1.5).sample((n,)),
    "Cauchy": lambda n: torch.distributions.Cauchy(0.0, 1.0).sample((n,)).abs(),
    "two values": lambda n: torch.randint(2, (n,)) + 0.1,
    "growing with the rate": lambda n: 1.4 + torch.randn(n) * torch.logspace(-6, 0, n),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("num_steps", [30, 100, 300])
def test_noise_alone_is_no_descent(draw, num_steps):
    if draw == "growing with the rate" and num_steps < 100:
        pytest.skip("half as much again with each step: that can't be told from few")
    torch.manual_seed(0)
    accepted = 0
    for _ in range(100):
        drawn = iter(DRAWS[draw](num_steps).tolist())
        try:
            run_sweep(lambda lr, drawn=drawn: next(drawn), make_rates(1e-5, 10, num_steps)).suggest()
            accepted += 1
        except LRSweepError:
            pass
    assert accepted <= 5  # 1 of 20


def test_ranks_tell_a_descent_of_any_distribution():
    torch.manual_seed(0)
    losses = torch.cat([torch.randn(70) ** 2, 0.01 * torch.randn(30) ** 2])
    assert falls_in_rank(losses.tolist())
    assert falls_in_rank((losses.log() - 100).tolist())  # any rising function of the losses, below 0 too
    assert not falls_in_rank(losses.flip(0).tolist())
    assert not falls_in_rank([1.0] * 100)


def test_a_mean_is_lower_only_beyond_its_own_noise():
    torch.manual_seed(0)
    flat, noisy = torch.ones(50), 1 + 0.1 * torch.randn(50)
    assert falls_in_mean((torch.cat([flat, noisy - 0.2])).tolist(), 10)
    assert not falls_in_mean(torch.cat([flat, noisy]).tolist(), 10)
    assert not falls_in_mean(torch.cat([flat, noisy + 0.2]).tolist(), 10)


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([1.0] * 50 + [0.1, 0.05], True),
        ([1.0] * 50 + [0.1], False),  # an outlier
        ([1.0] * 50 + [0.1, 1.0, 0.1], False),
        ([2.3, 2.3, 2.3, 2.3, 2.29, 2.2, 1.9, 1.5, 0.9], True),  # few steps
        ([1.0, 1.1] * 25 + [0.9, 0.9], False),
        ([1.0, 1.1] * 25 + [0.1, 0.1], True),
        ([1.0] * 50, False),
    ],
)
def test_a_fall_at_once_is_far_below_all_before(losses, falls):
    assert falls_at_once(losses, 5) == falls
    assert not falls or descends(losses, 5)


def test_noise_is_neither_a_slope_nor_an_outlier():
    torch.manual_seed(0)
    drawn = 0.3 * torch.randn(2000) + torch.linspace(0, 1000, 2000)
    drawn[::100] += 1e6
    assert noise(drawn.tolist()) == pytest.approx(0.3, rel=0.15)
    assert noise([1.0, 2.0, 3.0, 4.0]) == 0
    assert noise([1.0, 2.0]) == math.inf


def test_a_noisy_loss_does_not_end_a_sweep():
    lengths = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        lengths.append(
            len(
                run_sweep(lambda lr, g=generator: torch.randn(1, generator=g).item() ** 2, make_rates(1e-5, 1, 100)).lrs
            )
        )
    assert sum(length == 100 for length in lengths) >= 18


def test_number_of_batches_grows_with_the_noise():
    torch.manual_seed(0)
    drawn = torch.randn(1000)
    assert count_batches((2.3 + 0.1 * drawn).tolist(), 300) == 1
    few, many = (count_batches((1 + spread * drawn).tolist(), 300) for spread in (0.2, 0.4))
    assert abs(many - 4 * few) <= 4
    assert abs(count_batches((1 + 0.2 * drawn).tolist(), 100) - 3 * few) <= 3  # a third of the window
    assert count_batches((drawn**2).tolist(), 100) == MAX_BATCHES
    assert count_batches([1.0] * 16, 100) == count_batches([math.nan] * 16, 100) == 1


def regression(batch_size, seed):
    """A linear regression, with an optimizer and a loader."""
    torch.manual_seed(seed)
    x = torch.randn(512, 10)
    y = x @ torch.randn(10, 1) / 10**0.5 + 0.1 * torch.randn(512, 1)
    model = torch.nn.Linear(10, 1)
    loader = [*zip(x.split(batch_size), y.split(batch_size), strict=True)]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss, loader


@pytest.mark.parametrize("batch_size", [8, 32, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 4))])
def test_a_noisy_descent_is_accepted(batch_size):
    found = []
    for seed in range(20):
        try:
            found.append(find_lr(*regression(batch_size, seed), num_steps=100).suggest())
        except LRSweepError:
            continue
    assert len(found) >= 18
    assert all(1e-3 < lr < 0.2 for lr in found)


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
    with pytest.raises(ValueError, match="needs a loader with at least one batch, got an empty one"):
        find_lr(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy, [])


def test_find_lr_restores_gradients_and_the_optimizers_state_bit_for_bit():
    model, loader = problem()
    model[0].register_buffer("calls", torch.zeros(1), persistent=False)
    model[0].register_forward_hook(lambda module, *_: module.calls.add_(1) and None)
    model[3].weight.requires_grad_(False)
    slow, fast = [*model[0].parameters()], [*model[1].parameters(), *model[3].parameters()]
    optimizer = torch.optim.Adam([{"params": slow, "lr": torch.tensor(0.01)}, {"params": fast, "lr": 0.1}])
    x, y = next(iter(loader))
    for _ in range(2):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    before = [tensor.detach().clone() for tensor in tensors]
    rate = optimizer.param_groups[0]["lr"]
    find_lr(model, optimizer, F.cross_entropy, loader, num_steps=40)
    after = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    after += [value for state in optimizer.state.values() for value in state.values()]
    assert all(one is other for one, other in zip(tensors, after, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert optimizer.param_groups[0]["lr"] is rate
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])


def test_find_lr_takes_a_generator_that_can_not_be_restarted():
    model, optimizer, loss, loader = regression(32, 0)
    sweep = find_lr(model, optimizer, loss, (batch for _, batch in zip(range(10), loader, strict=False)), num_steps=60)
    assert 1e-3 < sweep.suggest() < 0.5


def test_the_batches_of_an_iterator_are_repeated_in_order():
    assert [batch for _, batch in zip(range(7), endless(iter("abc")), strict=False)] == [*"abcabca"]
    with pytest.raises(ValueError, match="got an empty one"):
        next(endless(iter("")))


def test_find_lr_takes_an_optimizer_that_needs_a_closure():
    model, _, loss, loader = regression(64, 0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    assert 1e-5 <= find_lr(model, optimizer, loss, loader, num_steps=60).suggest() <= 10
    assert not optimizer.state


def test_groups_keep_their_ratios():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": weight, "lr": lr} for weight, lr in zip(weights, [0.01, 0.1, 0.05], strict=True)]
    optimizer = torch.optim.SGD(groups)
    assert group_factors(optimizer) == pytest.approx([0.1, 1.0, 0.5])
    assert group_factors(optimizer, 0.05) == pytest.approx([0.2, 2.0, 1.0])
    torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 1.0, 0.5], total_steps=10)
    assert group_factors(optimizer) == pytest.approx([0.1, 1.0, 0.5])


@pytest.mark.parametrize(
    ("sweep", "text"),
    [
        (curve(), r"LRSweep\(\d+ of 300 steps, lr 1e-05 to [\d.]+, loss 2.3 to 1.\d+, valley 0.0\d+\)"),
        (LRSweep([1e-3] * 3, [math.nan] * 3, 9), r"LRSweep\(3 of 9 steps, .*, no suggestion\)"),
        (LRSweep([], [], 9), r"LRSweep\(none of 9 steps\)"),
    ],
)
def test_a_sweep_shows_what_it_came_to_in_a_line(sweep, text):
    assert re.fullmatch(text, repr(sweep))


def test_a_sweep_is_drawn_in_a_line():
    labels = [line.get_label() for line in curve().plot("steep").axes[0].lines]
    assert [label for label in labels if label.endswith("(taken)")] == [
        f"steep: {curve().suggest('steep'):.3g} (taken)"
    ]
