import math

import pytest
import torch
from conftest import rates

from cifar_lightning import Constant, Cosine, Exponential, OneCycle, Performance, PiecewiseConstant, Power


def test_constant():
    assert set(rates(Constant(), 20)) == {0.05}


def test_power():
    seen = rates(Power(s=10, c=2.0), 30, lr=1.0)
    assert seen == pytest.approx([1 / (1 + t / 10) ** 2 for t in range(31)])


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_exponential(by):
    schedule = Exponential(factor=0.1, s=20, by=by)
    assert schedule.interval == by
    assert rates(schedule, 40, lr=1.0) == pytest.approx([0.1 ** (t / 20) for t in range(41)])


def test_piecewise_constant():
    schedule = PiecewiseConstant([2, 5], [1.0, 0.5, 0.1])
    assert schedule.interval == "epoch"
    assert rates(schedule, 6, lr=2.0) == pytest.approx([2, 2, 1, 1, 1, 0.2, 0.2])


def test_performance():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = Performance(factor=0.5, patience=1, min_lr=0.3)
    scheduler = schedule.build(optimizer, None)
    assert (schedule.interval, schedule.monitor) == ("epoch", "val_loss")
    seen = []
    for loss in (1.0, 0.9, 0.95, 0.93, 0.91, 0.92, 0.8):
        scheduler.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.3, 0.3]


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
def test_a_metric_that_is_no_number_is_no_progress(metric):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = Performance(metric=metric, factor=0.5, patience=1).build(optimizer, None)
    seen = []
    for value in (math.nan, 0.9, math.nan, math.nan, 0.9, math.nan):
        scheduler.step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_cosine():
    seen = rates(Cosine(warmup=0.1, final=0.01), 100, lr=1.0)
    assert seen[:11] == pytest.approx([(t + 1) / 11 for t in range(11)])
    assert seen[55] == pytest.approx(0.01 + 0.99 / 2)
    assert seen[-1] == pytest.approx(0.01)
    assert min(seen) > 0
    assert max(seen) == 1.0


@pytest.mark.parametrize("schedule", [OneCycle(), Cosine()])
def test_what_needs_to_know_its_length(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match="needs to know the length of the run"):
        schedule.build(optimizer, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneCycle(pct_start=0.6), r"pct_start must be in \(0, 0.5\], got 0.6"),
        (lambda: OneCycle(max_lr=0), "max_lr must be"),
        (lambda: PiecewiseConstant([5], [1.0]), "one factor more than epochs"),
        (lambda: PiecewiseConstant([5, 2], [1.0, 0.5, 0.1]), "needs ascending epochs"),
        (lambda: Cosine(warmup=1.0), "warmup must be"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (OneCycle(), "OneCycle()"),
        (OneCycle(max_lr=0.1, anneal="cos"), "OneCycle(max_lr=0.1, anneal='cos')"),
        (PiecewiseConstant(), "PiecewiseConstant()"),
        (PiecewiseConstant([1], [1.0, 0.1]), "PiecewiseConstant(epochs=[1], factors=[1.0, 0.1])"),
    ],
)
def test_a_schedule_shows_what_was_chosen(schedule, text):
    assert repr(schedule) == text
    assert eval(text) == schedule


@pytest.mark.parametrize(
    "schedule",
    [Constant(), Cosine(), OneCycle(cycle_momentum=True), Performance(patience=0), PiecewiseConstant([1, 3])],
)
def test_a_schedule_is_drawn_in_a_line(schedule):
    figure = schedule.plot(12, lr=0.05, steps_per_epoch=3)
    assert figure.get_suptitle() == f"{schedule!r}, 12 steps"
    assert len(figure.axes) == 1 + (schedule == OneCycle(cycle_momentum=True))
    line = list(figure.axes[0].lines[0].get_ydata())[:12]
    match schedule:
        case PiecewiseConstant():
            assert line == pytest.approx([0.05] * 3 + [0.025] * 6 + [0.005] * 3)
        case Performance():  # as if the metric never improved: the first one is the best
            assert line == pytest.approx([0.05] * 6 + [0.025] * 3 + [0.0125] * 3)
        case _:
            assert line == pytest.approx(rates(schedule, 12)[:12])


@pytest.mark.parametrize("sizes", [{"steps": 0}, {"steps": 3, "steps_per_epoch": 0}])
def test_a_schedule_of_no_steps(sizes):
    with pytest.raises(ValueError, match="steps and steps_per_epoch must be at least 1, got"):
        Constant().plot(**sizes)
