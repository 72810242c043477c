import os

import pytest

from cifar_lightning.compiled.threads import usable_cores


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"sched_getaffinity": lambda pid: {0, 2, 5}, "process_cpu_count": lambda: 8, "cpu_count": lambda: 9}, 3),
        ({"process_cpu_count": lambda: 8, "cpu_count": lambda: 9}, 8),
        ({"cpu_count": lambda: 9}, 9),
        ({"cpu_count": lambda: None}, 1),
    ],
)
def test_usable_cores_are_those_that_the_system_tells(monkeypatch, names, expected):
    for name in ("sched_getaffinity", "process_cpu_count", "cpu_count"):
        monkeypatch.delattr(os, name, raising=False)
    for name, function in names.items():
        monkeypatch.setattr(os, name, function, raising=False)
    assert usable_cores() == expected
