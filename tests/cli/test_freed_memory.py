"""A command reuses the memory of large tensors instead of fetching it from the system again and again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from cifar_lightning.cli.command import command

with command():
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such parameters")
@pytest.mark.parametrize(
    "variables",
    [{}, {"MALLOC_MMAP_THRESHOLD_": "100000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=100000"}],
    ids=["ours", "a variable", "a tunable"],
)
def test_large_tensors_take_the_memory_of_those_before_unless_the_user_says_otherwise(variables):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | variables, check=True, capture_output=True, text=True
    )
    pages = int(run.stdout)  # that the system had to provide
    if variables:
        assert pages > 5 * 32  # of 2 MiB each, or many more of 4 KiB
    else:
        assert pages < 100
