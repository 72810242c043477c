"""Commands on several devices and several nodes: real processes, that end together and go on where they ended."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

from cifar_lightning.export.checkpoint_files import read_checkpoint

pytestmark = pytest.mark.slow

FLAGS = [
    *(
        *(flag for flag in SMALL if "summary" not in flag),
        "--data.batch_size=32",
        "--model.hidden_sizes=2x8",
        "--trainer.accelerator=cpu",
    ),
    *("--trainer.strategy=ddp", "--trainer.log_every_n_steps=1"),
]
TWO = [*FLAGS, "--trainer.devices=2"]


def start(*arguments, module="cifar_lightning"):
    return subprocess.Popen(
        [sys.executable, "-m", *module.split(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def finish(*processes, seconds=120):
    """What each process printed; all must end well."""
    printed = [process.communicate(timeout=seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)[-3000:]
    return printed


def last_checkpoint(folder="."):
    return max(Path(folder).rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)


def wait_for(process, words):
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"it ended without {words!r}")


def second_rank(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    (rank,) = (child for child, command in commands.items() if b"cifar_lightning" in command)
    return rank


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells the second process by /proc")
def test_a_rank_that_is_told_to_stop_alone_ends_the_run():
    process = start("fit", *TWO, "--trainer.max_epochs=100000")
    wait_for(process, "epoch   2")
    os.kill(second_rank(process), signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search("error: (this process was told to stop|another process of this training has ended)", printed)
    assert read_checkpoint(last_checkpoint())["epoch"] >= 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells the second process by /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_which_then_goes_on(rank):
    process = start("fit", *TWO, "--trainer.max_epochs=100000")
    wait_for(process, "epoch   2")
    victim = process.pid if rank == 0 else second_rank(process)
    begin = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)  # of both: the pipe is closed when the last has ended
    assert time.monotonic() - begin < 60
    assert process.returncode == (-signal.SIGKILL if rank == 0 else 1)
    assert "error: another process of this run has ended; its own output says why" in printed
    assert "Traceback" not in printed
    last = last_checkpoint()
    steps = torch.load(last, weights_only=True)["global_step"]
    finish(start("fit", f"--ckpt_path={last}", "--trainer.max_epochs=-1", f"--trainer.max_steps={steps + 5}"))
    assert torch.load(last_checkpoint(), weights_only=True)["global_step"] == steps + 5


def test_two_nodes_that_torchrun_starts_train_as_one():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def node(rank):
        launcher = f"torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank {rank} --master-addr 127.0.0.1"
        flags = [*FLAGS, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.max_epochs=2"]
        return start("-m", "cifar_lightning", "fit", *flags, module=f"{launcher} --master-port {port}")

    first, second = finish(node(0), node(1))
    assert "Devices: 2, each with 32 of a step's 64 images" in first
    assert "epoch   2" in first
    assert "epoch   2" not in second
    (run,) = Path("runs/default").iterdir()  # one folder, of the first rank
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "learning_curves.png", "checkpoints"}
    assert torch.load(last_checkpoint(), weights_only=True)["global_step"] == 2 * 4


def test_a_run_goes_on_with_another_number_of_devices_and_the_same_steps():
    finish(start("fit", *TWO, "--trainer.max_epochs=-1", "--trainer.max_steps=5"))
    last = last_checkpoint()
    one = ["--trainer.devices=1", "--trainer.max_steps=9", f"--ckpt_path={last}"]
    wrong = start("fit", *one)
    printed, _ = wrong.communicate(timeout=60)
    assert wrong.returncode == 2
    assert "steps of 64 images again; got 1 with steps of 32" in printed
    finish(start("fit", *one, "--data.batch_size=64"))
    assert torch.load(last_checkpoint(), weights_only=True)["global_step"] == 9


def test_everything_on_with_two_processes():
    callbacks = ["EarlyStopping", "LRFinder", "SignalPicture", "LearningRateMonitor"]
    flags = [f"--config={ROOT}/configs/one_cycle.yaml", *TWO, "--trainer.max_epochs=2"]
    for name in callbacks:
        flags += [f"--trainer.callbacks+={name}"] + ["--trainer.callbacks.monitor=val_loss"] * (name == "EarlyStopping")
    (printed,) = finish(start("fit", *flags))
    for said in ("Devices: 2", "LRFinder: training with lr", "epoch   2", "best "):
        assert printed.count(said) == 1, said
    folder = last_checkpoint().parents[1]
    for file in ("lr_finder.csv", "lr_finder.png", "signals.csv", "signals.png", "metrics.csv", "config.yaml"):
        assert len(list(Path().rglob(file))) == 1, file
    ckpt = f"--ckpt_path={folder}/checkpoints/best.ckpt"
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    (printed,) = finish(start("test", ckpt, *two, "--evaluation.mc_samples=3"))
    assert len(re.findall(r"MC dropout, 3", printed)) == 1


SRUN = """\
#!/usr/bin/env bash
# Starts what srun would on two nodes: a process for each, told apart by SLURM's variables.
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def test_two_nodes_of_slurm_train_as_one(tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    slurm = {"NTASKS": 2, "NNODES": 2, "JOB_NUM_NODES": 2, "NTASKS_PER_NODE": 1, "JOB_ID": 15123}
    slurm |= {"JOB_NAME": "cifar", "NODELIST": "127.0.0.1", "JOB_NODELIST": "127.0.0.1"}
    environment = os.environ | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    flags = [flag for flag in FLAGS if "strategy" not in flag]
    command = [ROOT / "scripts" / "slurm.sbatch", *flags, "--trainer.max_epochs=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Devices: 2, each with 16 of a step's 32 images" in done.stdout
    assert torch.load(last_checkpoint(), weights_only=True)["global_step"] == 8
    assert len(list(Path("runs/default").iterdir())) == 1
