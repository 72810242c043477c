import optuna
import pytest
from conftest import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from cifar_lightning.experiments.grid import read_grid
from cifar_lightning.experiments.search.options import Options, distributions, make_pruner, make_sampler


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_what_is_drawn_is_a_function_of_seed_and_number(sampler):
    axes = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9)}

    def draw(storage, sizes, seed=1):
        for size in sizes:
            options = Options("", sampler=sampler, startup_trials=2, seed=seed)
            study = optuna.create_study(
                storage=storage, study_name="a", sampler=make_sampler(options), load_if_exists=True
            )
            for _ in range(size):
                trial = study.ask(fixed_distributions=axes)
                study.tell(trial, trial.params["x"] ** 2)
        return [trial.params for trial in study.trials]

    storages = [optuna.storages.InMemoryStorage() for _ in range(3)]
    whole, in_parts = draw(storages[0], [5]), draw(storages[1], [1, 2, 1, 1])
    assert whole == in_parts
    assert whole[0] != whole[1]
    assert draw(storages[2], [5], seed=2) != whole


@pytest.mark.parametrize(
    ("options", "pruned"),
    [
        ({}, True),
        ({"pruner": "median"}, True),
        ({"pruner": "hyperband"}, True),
        ({"pruner": "none"}, False),
        ({"sampler": "gp"}, False),
    ],
)
def test_pruners_stop_the_worse(options, pruned):
    study = optuna.create_study(pruner=make_pruner(Options("", **options)))
    stopped = 0
    for number in range(20):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        for step in range(9):
            trial.report(float(number), step)
            if trial.should_prune():
                stopped += 1
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(number))
    assert (stopped > 0) == pruned


def test_distributions():
    grid = read_grid(
        "n: {type: int, low: 1, high: 10}\n"
        "m: {type: int, low: 64, high: 256, step: 64}\n"
        "model.hidden_sizes: '{n}x{m}'\n"
        "model.lr: {type: float, low: 1e-5, high: 1e-3, log: true}\n"
        "model.activation: [relu, selu]\n"
        "model.norm_input: [true, false]\n"
        "model.optimizer.betas: [[0.9, 0.99], null]\n"
        "o: {sgd: {model.optimizer: SGD}, nadam: {}}\n"
    )
    assert distributions(grid) == {
        "n": IntDistribution(1, 10),
        "m": IntDistribution(64, 256, step=64),
        "model.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "model.activation": CategoricalDistribution(["relu", "selu"]),
        "model.norm_input": CategoricalDistribution([True, False]),
        "model.optimizer.betas": CategoricalDistribution(["[0.9, 0.99]", "null"]),
        "o": CategoricalDistribution(["sgd", "nadam"]),
    }


def test_the_shipped_space_is_the_notebooks():
    grid = read_grid(str(ROOT / "configs" / "search" / "tuner.yaml"))
    assert distributions(grid) == {
        "n_hidden": IntDistribution(1, 10),
        "n_neurons": IntDistribution(64, 256),
        "model.lr": FloatDistribution(1e-5, 1e-3, log=True),
    }
    assert grid.templates == {"model.hidden_sizes": "{n_hidden}x{n_neurons}"}
