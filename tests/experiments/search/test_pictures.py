import math
import random
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from pictures import problems, words

from cifar_lightning.experiments.search.pictures import (
    Drawn,
    Scale,
    draw_history,
    draw_importances,
    draw_parallel,
    draw_search,
    draw_slices,
)
from cifar_lightning.style import style

TUNER = {
    "n_hidden": IntDistribution(1, 10),
    "n_neurons": IntDistribution(64, 256),
    "model.lr": FloatDistribution(1e-5, 1e-3, log=True),
}
MANY = TUNER | {
    "model.activation": CategoricalDistribution(["relu", "selu", "leaky_relu", "silu", "hard_sigmoid"]),
    "model.optimizer.init_args.momentum": FloatDistribution(0.8, 0.999),
    "model.l2": FloatDistribution(1e-9, 1e-1, log=True),
    "trainer.gradient_clip_val": CategoricalDistribution([0.5, 1, 2]),
}
NARROW = {"n": IntDistribution(3, 3), "on": CategoricalDistribution([True])}


@pytest.fixture(autouse=True)
def _no_lines():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def draw(distribution, chance):
    match distribution:
        case CategoricalDistribution(choices=choices):
            return chance.choice(choices)
        case IntDistribution(low=low, high=high):
            return chance.randint(low, high)
        case FloatDistribution(low=low, high=high, log=True):
            return math.exp(chance.uniform(math.log(low), math.log(high)))
        case FloatDistribution(low=low, high=high):
            return chance.uniform(low, high)


def make_study(space, values, pruned=(), direction="minimize"):
    """A study of random parameters and given values; the trials of these numbers are pruned."""
    study, chance = optuna.create_study(direction=direction), random.Random(1)
    for number, value in enumerate(values):
        state = TrialState.PRUNED if number in pruned else TrialState.COMPLETE
        params = {name: draw(distribution, chance) for name, distribution in space.items()}
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=space))
    return study


@pytest.mark.parametrize(
    ("space", "trials", "metric"),
    [
        (TUNER, 1, "val_loss"),
        (TUNER, 30, "val_accuracy"),
        (MANY, 30, "val_loss"),
        (NARROW, 2, "val_accuracy"),
        ({"model.lr": TUNER["model.lr"]}, 6, "val_loss"),
    ],
)
def test_nothing_lies_on_anything(space, trials, metric):
    direction = "maximize" if metric == "val_accuracy" else "minimize"
    values = [0.4 + 0.001 * (7 * number % 11) for number in range(trials)]
    drawn = Drawn(make_study(space, values, pruned=[3, 4], direction=direction), metric)
    importances = dict(zip(space, (0.7, *[0.3 / len(space)] * len(space)), strict=False))
    label = metric.replace("val_", "validation ")
    with style():
        for figure in (draw_history(drawn), draw_slices(drawn), draw_parallel(drawn)):
            assert problems(figure) == []
            assert label in words(figure)
        assert problems(draw_importances(importances, label)) == []


def test_the_best_is_marked_and_the_pruned_do_not_count():
    drawn = Drawn(make_study(TUNER, [2.0, 1.0, 1.5, 0.5, math.inf], pruned=[3]), "val_loss")
    (axes,) = draw_history(drawn).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["best: trial 1"] == [[1, 1.0]]
    assert lines["complete"] == [[0, 2.0], [1, 1.0], [2, 1.5]]
    assert lines["pruned, where it was"] == [[3, 0.5]]
    assert lines["best so far"] == [[0, 2.0], [1, 1.0], [2, 1.0], [3, 1.0]]
    best = next(line for line in draw_parallel(drawn).axes[0].lines if line.get_label() == "best: trial 1")
    assert best.get_ydata()[-1] == 0.0


def test_accuracies_are_percents_and_the_highest_is_the_best():
    study = make_study(TUNER, [0.4, 0.5, 0.45], direction="maximize")
    drawn = Drawn(study, "val_accuracy")
    assert drawn.best.number == 1
    assert "44%" in words(draw_history(drawn))
    assert "44%" in words(draw_parallel(drawn))


def test_scales():
    log = Scale.of([1e-4, 1e-3, 1e-2], FloatDistribution(1e-5, 1, log=True))
    assert log.places == pytest.approx([0, 0.5, 1])
    assert dict(zip(log.labels, log.ticks, strict=True))["0.001"] == pytest.approx(0.5)
    whole = Scale.of([2, 5, 4], IntDistribution(1, 9))
    assert whole.places == pytest.approx([0, 1, 2 / 3])
    assert whole.labels == ["2", "3", "4", "5"]
    named = Scale.of(["b", "a", "b"], CategoricalDistribution(["a", "c", "b"]))
    assert (named.labels, named.places) == (["a", "b"], [0.75, 0.25, 0.75])
    assert Scale.of([3, 3], IntDistribution(3, 3)).places == [0.5, 0.5]


def test_a_single_trial_has_no_importances():
    draw_search(make_study(TUNER, [1.0]), "val_loss", Path())
    assert {path.stem for path in Path().glob("*.png")} == {"optimization_history", "slice", "parallel_coordinate"}
