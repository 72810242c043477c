from types import SimpleNamespace

from cifar_lightning.experiments.search.trial import RUNNING, TrialReport, begin, is_alive


def test_a_trials_value_is_that_of_its_best_checkpoint():
    reported = []
    trial = SimpleNamespace(report=lambda value, step: reported.append((step, value)), should_prune=lambda: False)
    report = TrialReport(trial, "val_accuracy")
    for loss, accuracy in ((3.0, 0.1), (1.0, 0.2), (2.0, 0.3)):
        metrics = {"val_loss": loss, "val_accuracy": accuracy}
        report.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=metrics), None)
    assert report.value == 0.2
    assert reported == [(0, 0.1), (1, 0.2), (2, 0.3)]


def test_a_trial_is_alive_while_its_process_holds_the_file(tmp_path):
    folder = tmp_path / "trial"
    running = begin(folder)
    assert is_alive(folder)
    running.close()  # as the system does for a process that was killed
    assert not is_alive(folder)
    (folder / RUNNING).unlink()
    assert not is_alive(folder)
