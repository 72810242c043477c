import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from cifar_lightning.experiments.search.options import Options, make_pruner, make_sampler


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_what_is_drawn_is_a_function_of_seed_and_number(sampler):
    distributions = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9)}

    def draw(storage, sizes, seed=1):
        for size in sizes:
            options = Options(sampler=sampler, startup_trials=2, seed=seed)
            study = optuna.create_study(
                storage=storage, study_name="a", sampler=make_sampler(options), load_if_exists=True
            )
            for _ in range(size):
                trial = study.ask(fixed_distributions=distributions)
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
    study = optuna.create_study(pruner=make_pruner(Options(**options)))
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
