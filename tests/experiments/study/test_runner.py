import os

from cifar_lightning.experiments.study.runner import share_cores


def test_each_job_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("cifar_lightning.experiments.study.runner.usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_cores(1)
    assert "OMP_NUM_THREADS" not in os.environ  # the training chooses
    share_cores(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    share_cores(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"  # what is set is kept
