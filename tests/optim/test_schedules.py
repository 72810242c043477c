import csv
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from PIL import Image

from cifar_lightning import Constant, Cosine, Exponential, OneCycle, Performance, PiecewiseConstant, Power
from cifar_lightning.optim.schedules import build_schedule, schedule_component

pytestmark = pytest.mark.usefixtures("undrawn")


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
    with pytest.raises(ValueError, match="needs to know how long the training is"):
        schedule.build(optimizer, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneCycle(pct_start=0.6), "pct_start out of range: expected 0 < pct_start <= 0.5, received 0.6"),
        (lambda: OneCycle(max_lr=0), "max_lr out of range"),
        (lambda: PiecewiseConstant([5], [1.0]), "one factor more than epochs"),
        (lambda: PiecewiseConstant([5, 2], [1.0, 0.5, 0.1]), "expected ascending epochs"),
        (lambda: Cosine(warmup=1.0), "warmup out of range"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCHEDULES = {
    "OneCycle": [],
    "Power": ["--model.schedule.s=5"],
    "Exponential": ["--model.schedule.by=step"],
    "PiecewiseConstant": ["--model.schedule.epochs=[1]", "--model.schedule.factors=[1.0,0.3]"],
    # At this rate no prediction changes.
    "Performance": ["--model.schedule.patience=0", "--model.schedule.metric=val_accuracy", "--model.lr=1e-7"],
    "Cosine": ["--model.schedule.warmup=0.2"],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_mid_epoch_resume_restores_every_schedule(run, name):
    flags = [*SMALL, "--data.batch_size=16", "--model.hidden_sizes=2x10", "--model.lr=0.01"]
    flags += ["--trainer.max_epochs=4", "--trainer.log_every_n_steps=1", f"--model.schedule={name}", *SCHEDULES[name]]
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]
    run("fit", *flags, *every, "--trainer.default_root_dir=whole")
    middle = next(Path("whole").rglob("stepstep=35*.ckpt"))
    run("fit", *flags, "--trainer.default_root_dir=resumed", f"--ckpt_path={middle}")

    def lrs(root):
        with next(Path(root).rglob("metrics.csv")).open() as file:
            return {int(row["step"]): row["lr"] for row in csv.DictReader(file) if row["lr"]}

    whole, resumed = lrs("whole"), lrs("resumed")
    assert resumed == {step: lr for step, lr in whole.items() if step >= 35}
    assert len(set(whole.values())) > 1


def finished_cycle(run):
    flags = [f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--model.hidden_sizes=2x10", "--data.batch_size=16"]
    run("fit", *flags, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1")
    return [*flags, "--trainer.log_every_n_steps=1", f"--ckpt_path={next(Path().rglob('last.ckpt'))}"]


def newest(name):
    return max(Path().rglob(name), key=lambda path: path.stat().st_mtime)


def test_resuming_a_finished_cycle_with_more_epochs_names_the_ways_out(run, fail):
    message = fail("fit", *finished_cycle(run), "--trainer.max_epochs=4")
    assert "another length than its OneCycle schedule: expected 30 optimizer steps" in message
    assert "received 60" in message
    assert "--cycle.resume finish" in message
    assert "--cycle.resume new" in message


def test_a_new_cycle_from_the_old_weights(run):
    flags = finished_cycle(run)
    run("fit", *flags, "--trainer.max_epochs=4", "--cycle.resume=new")
    with newest("metrics.csv").open() as file:
        seen = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert seen == pytest.approx(list(geron(30)), rel=1e-6)
    assert torch.load(newest("last.ckpt"), weights_only=True)["global_step"] == 60


def test_a_new_cycle_is_restored_when_it_is_resumed_itself(run):
    flags = [*SMALL, "--model.hidden_sizes=2x10", "--data.batch_size=16", "--model.schedule=Cosine"]
    flags += ["--trainer.log_every_n_steps=1", "--model.lr=0.1", "--config=none.yaml"]
    Path("none.yaml").write_text("{}")
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]
    run("fit", *flags, "--trainer.max_epochs=2")
    first = f"--ckpt_path={next(Path().rglob('last.ckpt'))}"
    run("fit", *flags, *every, "--trainer.max_epochs=5", "--cycle.resume=new", first)
    whole = newest("metrics.csv")
    middle = f"--ckpt_path={next(Path().rglob('stepstep=60*.ckpt'))}"
    run("fit", *flags, "--trainer.max_epochs=5", middle)

    def lrs(path):
        with path.open() as file:
            return {int(row["step"]): row["lr"] for row in csv.DictReader(file) if row["lr"]}

    assert lrs(newest("metrics.csv")) == {step: lr for step, lr in lrs(whole).items() if step >= 60}


def test_finishing_the_old_cycle(run):
    flags = finished_cycle(run)
    run("fit", *flags, "--trainer.max_epochs=4", "--cycle.resume=finish")
    assert torch.load(next(Path().rglob("last.ckpt")), weights_only=True)["global_step"] == 30


def test_a_schedule_is_drawn_without_training(run):
    printed = run("fit", f"--config={ROOT}/configs/one_cycle.yaml", *SMALL, "--trainer.callbacks+=SchedulePlot")
    assert "30 steps: rate 0.005 at first, 0.05 at most" in printed
    with Image.open(newest("schedule.png")) as picture:
        assert min(picture.size) > 300
    assert not list(Path().rglob("*.ckpt"))
