"""Many trainings in one process leave nothing behind in it: no memory, no threads, no open files."""

import gc
import os
import threading
from pathlib import Path

import pytest
from conftest import SMALL

from cifar_lightning.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RUNS, WARM = 200, 50
#: Megabytes that memory may grow from the warm state to the end: an allocator keeps some of what was freed.
SLACK = 30
FLAGS = [*SMALL, "--model.hidden_sizes=2x8", "--trainer.max_epochs=1", "--execution.compile=never"]


def measure():
    """Resident megabytes, threads and open files of this process."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return resident, threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures by /proc")
def test_200_trainings_leave_nothing_in_the_process(capfd):
    seen = []
    for run in range(RUNS):
        main(["fit", *FLAGS, f"--seed_everything={run}"])
        seen.append(measure())
    (first, threads, files), (last, last_threads, last_files) = seen[WARM], seen[-1]
    with capfd.disabled():
        print(
            f"{RUNS} trainings: {seen[0][0]:.0f}, {first:.0f}, {last:.0f} MB after the 1st, {WARM}th and last; ", end=""
        )
        print(f"{threads} and {last_threads} threads, {files} and {last_files} open files")
    assert last - first < SLACK
    assert last_threads <= threads
    assert last_files <= files
