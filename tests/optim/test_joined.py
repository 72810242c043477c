import copy

import pytest
import torch
from torch import nn

from cifar_lightning import Constant, OneCycle
from cifar_lightning.optim.joined import JoinedOptimizer, join
from cifar_lightning.optim.schedules import Exponential, Performance


def models(count=3):
    torch.manual_seed(0)
    return [nn.Linear(4, 2) for _ in range(count)]


def optimizers(models):
    first, second, third = models
    return [
        torch.optim.SGD(first.parameters(), lr=0.1),
        torch.optim.SGD(second.parameters(), lr=0.2, momentum=0.9),
        torch.optim.NAdam(third.parameters(), lr=0.01),
    ]


def losses(models, seed):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return [model(inputs).square().mean() for model in models]


def train(step, models, seeds):
    for seed in seeds:
        for model in models:
            model.zero_grad()
        sum(losses(models, seed)).backward()
        step()


def weights(models):
    return [p.detach().clone() for model in models for p in model.parameters()]


def test_each_makes_its_own_steps():
    ours, theirs = models(), models()
    joined, apart = JoinedOptimizer(optimizers(ours)), optimizers(theirs)
    train(joined.step, ours, range(3))
    train(lambda: [optimizer.step() for optimizer in apart], theirs, range(3))
    assert all(map(torch.equal, weights(ours), weights(theirs)))


def test_a_closure_has_gradients_and_its_loss_is_returned():
    ours = models()
    joined = JoinedOptimizer(optimizers(ours))

    def closure():
        joined.zero_grad()
        loss = sum(losses(ours, 0))
        loss.backward()
        return loss

    with torch.no_grad():
        assert joined.step(closure).item() == pytest.approx(sum(losses(models(), 0)).item())
    assert not any(map(torch.equal, weights(ours), weights(models())))


def test_an_inactive_one_stands_still():
    ours = models()
    joined = JoinedOptimizer(optimizers(ours))
    train(joined.step, ours, [0])
    before = weights(ours)
    joined.active[1] = False
    train(joined.step, ours, [1])
    assert [torch.equal(a, b) for a, b in zip(before, weights(ours), strict=True)] == [False, False, True, True] + 2 * [
        False
    ]


SCHEDULES = [OneCycle(), Exponential(), Performance()]


def test_a_state_goes_on_where_it_was(tmp_path):
    ours = models()
    joined, schedulers = join(optimizers(ours), SCHEDULES, [10, 10, 10])

    def step():
        joined.step()
        for scheduler in schedulers.values():
            scheduler.step()

    train(step, ours, range(3))
    state = {"optimizer": joined.state_dict(), "schedulers": [s.state_dict() for s in schedulers.values()]}
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    theirs = copy.deepcopy(ours)
    train(step, ours, range(3, 6))
    again, of_again = join(optimizers(theirs), SCHEDULES, [10, 10, 10])
    again.load_state_dict(state["optimizer"])
    for scheduler, saved in zip(of_again.values(), state["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    joined, schedulers = again, of_again
    train(step, theirs, range(3, 6))
    assert all(map(torch.equal, weights(ours), weights(theirs)))
    assert [group["lr"] for group in again.param_groups] == [
        group["lr"] for optimizer in again.optimizers for group in optimizer.param_groups
    ]


def test_schedules_are_joined_by_their_interval():
    joined, schedulers = join(optimizers(models()), SCHEDULES, [10, 10, 10])
    assert {interval: sorted(each.schedulers) for interval, each in schedulers.items()} == {
        "step": [0],
        "epoch": [1, 2],
    }
    before = [group["lr"] for group in joined.param_groups]
    joined.step()
    assert all(scheduler.get_last_lr() == before for scheduler in schedulers.values())
    for scheduler in schedulers.values():
        scheduler.step()
    after = [group["lr"] for group in joined.param_groups]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] == before[2]  # it goes by a metric: whoever measures it steps it


def test_the_rate_of_an_inactive_one_stays():
    joined, schedulers = join(optimizers(models()), [Exponential(by="step")] * 2 + [Constant()], [None] * 3)
    joined.active[0] = False
    joined.step()
    schedulers["step"].step()
    assert joined.param_groups[0]["lr"] == 0.1
    assert joined.param_groups[1]["lr"] < 0.2
