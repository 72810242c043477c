import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import DEVICE, ROOT


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts beside an installed environment whose programs print what they are called with."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    bin_dir = tmp_path / ".venv" / "bin"
    bin_dir.mkdir(parents=True)
    for program in ("cifar-lightning", "mkdocs", "python"):
        (bin_dir / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (bin_dir / program).chmod(0o755)
    for stamp in (".installed", ".installed-docs", ".installed-test"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def call(checkout, script, *args, **environment):
    done = subprocess.run(
        [checkout / "scripts" / script, *args],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], **environment},
    )
    return done.stdout.strip().replace(str(checkout), "."), done.stderr


DEFAULT = "cifar-lightning fit --config ./configs/one_cycle.yaml"


@pytest.mark.parametrize(
    ("args", "environment", "expected"),
    [
        ([], {}, f"{DEFAULT} --data.source cifar10_or_synthetic"),
        (["--trainer.max_epochs", "3"], {}, f"{DEFAULT} --data.source cifar10_or_synthetic --trainer.max_epochs 3"),
        # Whoever names the data is never given other data.
        (["--data.data_dir", "x"], {}, f"{DEFAULT} --data.data_dir x"),
        (["--data.batch_size=64"], {}, f"{DEFAULT} --data.source cifar10_or_synthetic --data.batch_size=64"),
        (["--data.source=synthetic"], {}, f"{DEFAULT} --data.source=synthetic"),
        ([], {"CIFAR10_DIR": "x"}, DEFAULT),
        # Configs merge, so the default does not lie under another one.
        (["--config", "a.yaml"], {}, "cifar-lightning fit --config a.yaml"),
        (["--config=a.yaml"], {}, "cifar-lightning fit --config=a.yaml"),
        (["-c", "a.yaml"], {}, "cifar-lightning fit -c a.yaml"),
        (["--ckpt_path", "a.ckpt"], {}, "cifar-lightning fit --ckpt_path a.ckpt"),
        (["--help"], {}, "cifar-lightning fit --help"),
    ],
)
def test_fit(checkout, args, environment, expected):
    printed, said = call(checkout, "fit", *args, **environment)
    assert printed == expected
    assert said == ""  # installed nothing


@pytest.mark.parametrize(
    ("script", "expected"), [("test", "python -m pytest -n 2"), ("docs", "mkdocs build --strict -n 2")]
)
def test_the_arguments_are_passed_on(checkout, script, expected):
    assert call(checkout, script, "-n", "2")[0] == expected


@pytest.mark.parametrize(("script", "wanted"), [("fit", "."), ("test", ".[test]"), ("docs", ".[docs]")])
def test_installs_when_pyproject_is_newer(checkout, script, wanted):
    later = time.time() + 10
    os.utime(checkout / "pyproject.toml", (later, later))
    printed, said = call(checkout, script)
    assert "setting up .venv" in said
    assert f"pip install --quiet --no-compile --disable-pip-version-check --editable {wanted}" in said
    os.utime(checkout / "pyproject.toml", (0, 0))
    assert call(checkout, script)[1] == ""
    assert printed


def check_gpu(out, *arguments):
    """Run scripts/gpu_check; its status, what it printed, and the lines that it wrote."""
    command = [sys.executable, ROOT / "scripts" / "gpu_check", f"--out={out}", "--hidden_sizes=2x8", "--epochs=1"]
    done = subprocess.run([*command, "--images=600", "--networks=2", *arguments], capture_output=True, text=True)
    path = out / "gpu_check.jsonl"
    return done, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_gpu_check_writes_each_result_twice(tmp_path):
    done, lines = check_gpu(tmp_path, "--cpu", "--parts", "devices", "floors")
    assert done.returncode == 0, done.stderr
    assert [(line["part"], line["ok"]) for line in lines] == [("start", True), ("devices", True), ("floors", None)]
    table = (tmp_path / "gpu_check.md").read_text()
    assert table in done.stdout
    assert "| devices | an absent device's message | ok | devices cpu" in table
    assert "| floors | the launch floor | skipped | why a CPU launches nothing |" in table


def test_gpu_check_ends_a_part_that_takes_too_long(tmp_path):
    done, lines = check_gpu(tmp_path, "--cpu", "--parts", "resumes", "--slower=0.0001")
    assert done.returncode == 1
    assert lines[-1] == {"part": "resumes", "what": "the rest", "ok": False, "why": "not finished after 0 s"}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")
def test_gpu_check_without_a_gpu(tmp_path):
    done, lines = check_gpu(tmp_path / "out")
    assert done.returncode == 2
    assert "no CUDA device: expected one, or --device cpu to try out the script itself; found none" in done.stderr
    assert not lines


@pytest.mark.slow
def test_every_part_of_gpu_check_runs_on_a_cpu(tmp_path):
    done, lines = check_gpu(tmp_path, "--cpu", "--slower=5")
    assert done.returncode == 0, done.stdout
    assert {line["part"] for line in lines} >= {"steps", "graphs", "variants", "speed", "stacks", "tests"}
    assert all(line["ok"] is not False for line in lines)
    epochs = [line for line in lines if "seconds" in line]
    assert all(line["seconds"] > 0 for line in epochs)
    assert sum("our fit" in line["what"] for line in epochs) == 8


@pytest.mark.slow
def test_benchmark(tmp_path):
    out = tmp_path / "out.jsonl"
    systems = ["plain", "pytorch loop", "stock lightning"]
    command = [sys.executable, ROOT / "scripts" / "benchmark", "--systems", *systems, "--works", "selu_1cycle"]
    done = subprocess.run(
        [*command, "--epochs", "2", "--rounds", "1", "--out", out],
        capture_output=True,
        text=True,
        env=os.environ | {"BENCHMARK_IMAGES": "600"},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["system"] for line in lines] == systems
    for line in lines:
        assert len(line["epoch_seconds"]) == 2
        assert line["batch_size"] == 128
        assert line["start_seconds"] > 0
        assert {"work", "median", "peak_rss_mb", "torch", "threads", "cpu"} <= set(line)
    assert "| selu_1cycle, batch 128 | plain | 1.00 |" in done.stdout
