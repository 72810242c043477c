import pytest
import torch

from cifar_lightning import OneCycle
from cifar_lightning.schedules import Constant, build_schedule, schedule_component


def rates(schedule, steps, lr=0.05, optimizer=None):
    """The rate of each step, and the one after the last."""
    optimizer = optimizer or torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler = schedule.build(optimizer, steps)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(seen) <= steps:
            scheduler.step()
    return seen


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


def test_one_cycle_needs_to_know_its_length():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match="needs to know how long the training is: expected --trainer.max_epochs"):
        OneCycle().build(optimizer, None)


def test_constant():
    assert set(rates(Constant(), 20)) == {0.05}


def test_components():
    component = schedule_component(OneCycle(div_factor=5))
    assert component["class_path"] == "cifar_lightning.OneCycle"
    assert component["init_args"]["div_factor"] == 5
    assert build_schedule(component) == OneCycle(div_factor=5)
    assert build_schedule(schedule_component("OneCycle")) == OneCycle()
    with pytest.raises(ValueError, match="unknown schedule .*did you mean 'OneCycle'"):
        schedule_component("OnCycle")
