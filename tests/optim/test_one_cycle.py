import pytest
import torch
from conftest import rates

from cifar_lightning import DeepMLP, MuonAdamW, OneCycle


def geron(steps, max_lr=0.05):
    """Géron's OneCycleScheduler, from the notebook: the rate of each step."""
    start_lr = max_lr / 10
    last_iterations = steps // 10 + 1
    half = (steps - last_iterations) // 2
    last_lr = start_lr / 1000

    def interpolate(i, iter1, iter2, lr1, lr2):
        return (lr2 - lr1) * (i - iter1) / (iter2 - iter1) + lr1

    for i in range(steps):
        if i < half:
            yield interpolate(i, 0, half, start_lr, max_lr)
        elif i < 2 * half:
            yield interpolate(i, half, 2 * half, max_lr, start_lr)
        else:
            yield interpolate(i, 2 * half, steps, start_lr, last_lr)


@pytest.mark.parametrize("steps", [*range(1, 60), 100, 1001, 5280, 10_000])
def test_one_cycle_is_the_notebooks(steps):
    seen = rates(OneCycle(), steps)
    assert max(abs(a - b) for a, b in zip(seen, geron(steps), strict=False)) < 1e-12
    assert seen[-1] == pytest.approx(0.05 / 10 / 1000)  # the rate after the last step: positive
    assert min(seen) > 0


def test_one_cycle_moves_momentum_only_when_asked():
    for cycle, expected in ((False, {0.9}), (True, None)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, momentum=0.9)
        OneCycle(cycle_momentum=cycle).build(optimizer, 100)
        assert expected is None or {optimizer.param_groups[0]["momentum"]} == expected
        assert expected is not None or optimizer.param_groups[0]["momentum"] == 0.95


def test_cosine_form_has_the_same_corners():
    linear, cosine = rates(OneCycle(), 1000), rates(OneCycle(anneal="cos"), 1000)
    peak = linear.index(max(linear))
    assert cosine.index(max(cosine)) == peak
    for step in (0, peak, 1000):
        assert cosine[step] == pytest.approx(linear[step])
    assert cosine[peak // 4] < linear[peak // 4]


def test_peak_and_percentages():
    seen = rates(OneCycle(max_lr=0.3, pct_start=0.2), 100)
    assert max(seen) == pytest.approx(0.3)
    assert seen.index(max(seen)) == 20
    assert seen[0] == pytest.approx(0.03)
    assert seen[40] == pytest.approx(0.03)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.NAdam])
def test_cycled_momentum(make):
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make([torch.zeros(1, requires_grad=True)], 0.1, **options)
    scheduler = OneCycle(cycle_momentum=True, base_momentum=0.8, max_momentum=0.9).build(optimizer, 100)
    seen = []
    for _ in range(100):
        group = optimizer.param_groups[0]
        seen.append(group["betas"][0] if "betas" in group else group["momentum"])
        optimizer.step()
        scheduler.step()
    assert (max(seen), min(seen)) == (pytest.approx(0.9), pytest.approx(0.8))
    assert seen.index(min(seen)) == (100 - 11) // 2


def test_cycled_momentum_of_muon_is_that_of_adamw():
    optimizer = MuonAdamW(DeepMLP(in_features=8, hidden_sizes=[4, 4]).parameters(), 0.1)
    assert [group["orthogonalize"] for group in optimizer.param_groups] == [True, False, False]
    scheduler = OneCycle(cycle_momentum=True, base_momentum=0.8, max_momentum=0.9).build(optimizer, 100)
    seen = []
    for _ in range(100):
        moved = {group[name] for group in optimizer.param_groups for name in ("lr", "momentum")}
        moved |= {group["betas"][0] for group in optimizer.param_groups}
        assert len(moved) == 2  # a rate and a momentum, the same in all groups
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert (max(seen), min(seen)) == (pytest.approx(0.9), pytest.approx(0.8))
    assert seen.index(min(seen)) == (100 - 11) // 2
    constant = MuonAdamW(DeepMLP(in_features=8, hidden_sizes=[4, 4]).parameters(), 0.1)
    OneCycle().build(constant, 100)
    assert {group["momentum"] for group in constant.param_groups} == {0.95}
