import math
from types import SimpleNamespace

import pytest

from cifar_lightning import RunReport
from cifar_lightning.experiments.search.trial import TrialReport


class Trial:
    """What a report sees of Optuna, with a pruner that gives up after so many epochs."""

    def __init__(self, epochs=9):
        self.number, self.reported, self.epochs = 0, {}, epochs
        trial = SimpleNamespace(intermediate_values=self.reported)
        self.study = SimpleNamespace(get_trials=lambda deepcopy: [trial])

    def report(self, value, step):
        self.reported[step] = value

    def should_prune(self):
        return len(self.reported) >= self.epochs


def trainer(epoch, loss=1.0, accuracy=0.5):
    run = RunReport()
    run.validated = {"val_loss": loss, "val_accuracy": accuracy}
    return SimpleNamespace(current_epoch=epoch, callbacks=[run], should_stop=False)


def run_epoch(report, *args):
    of_epoch = trainer(*args)
    report.on_train_epoch_end(of_epoch, None)
    return of_epoch.should_stop


def test_each_validated_epoch_is_reported_once():
    trial = Trial()
    report = TrialReport(trial, "val_accuracy")
    assert not run_epoch(report, 0, 3.0, 0.1)
    unvalidated = trainer(1)
    unvalidated.callbacks[0].validated = {}
    report.on_train_epoch_end(unvalidated, None)
    assert not run_epoch(report, 2, 2.0, 0.2)
    assert trial.reported == {0: 0.1, 2: 0.2}
    assert not report.pruned


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_that_has_diverged_is_ended(loss):
    trial = Trial()
    report = TrialReport(trial, "val_accuracy")
    assert run_epoch(report, 0, loss, 0.1)
    assert report.pruned
    assert math.isnan(trial.reported[0])


def test_a_training_that_is_given_up_is_ended_and_stays_so():
    trial = Trial(epochs=2)
    report = TrialReport(trial, "val_loss")
    assert not run_epoch(report, 0)
    assert run_epoch(report, 1)
    # Killed before the study heard of it: a checkpoint has both epochs, or the first alone, or none.
    for epoch, stopped in ((2, True), (1, False), (0, False)):
        again, resumed = TrialReport(trial, "val_loss"), trainer(epoch)
        again.on_train_start(resumed, None)
        assert (resumed.should_stop, again.pruned) == (stopped, stopped)
