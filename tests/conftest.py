"""What the tests share: a device, one thread, a scratch directory, small data, and the real files where they are.

TEST_DEVICE=cuda runs the tests on the first GPU, where they have a meaning there; by default they see none.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream of its import: not a test's, which is closed)
import pytest
import torch

from cifar_lightning.data.sources import ENVIRONMENT_VARIABLE
from cifar_lightning.experiments.results import Result
from cifar_lightning.optim.schedule import Schedule

ROOT = Path(__file__).parent.parent
#: Flags that make any config train on a few synthetic images.
SMALL = [
    "--data.source=synthetic",
    "--data.synthetic_size=300",
    "--data.val_size=60",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
]
CIFAR10_DIR = os.environ.get(ENVIRONMENT_VARIABLE)
#: Where tests that use the fixtures `device` and `on_device` compute, and trainings without an accelerator run.
DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cpu"))
# A training takes what it sees: no GPU, or the first. (Torch looks when it is first asked.)
#: For a Trainer on that device.
ACCELERATOR = {"accelerator": "gpu" if DEVICE.type == "cuda" else "cpu", "devices": 1}
FIRST_GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
os.environ["CUDA_VISIBLE_DEVICES"] = FIRST_GPU if DEVICE.type == "cuda" else ""


def rates(schedule: Schedule, steps: int, lr: float = 0.05) -> list[float]:
    """The rate of each step of a schedule, and the one after the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler = schedule.build(optimizer, steps)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def make_row(epoch: float, loss: float, accuracy: float = 0.4, seconds: float = 2.0) -> dict[str, float]:
    """An epoch of a run."""
    return {"epoch": epoch, "seconds": seconds, "lr": 0.1, "val_loss": loss, "val_accuracy": accuracy}


def make_result(
    name: str = "a", seed: int = 1, losses: Sequence[float] = (2.0, 1.5, 1.8), test_accuracy: float = 0.45
) -> Result:
    """What a run of these validation losses came to."""
    rows = [make_row(i + 1.0, loss, 0.3 + i / 10) for i, loss in enumerate(losses)]
    return Result(name, seed, "synthetic", 1234, f"{name}/seed_{seed}", rows, {}, 1.6, test_accuracy)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the long proofs too."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    """A device that is not there is no reason to pass on another one."""
    if DEVICE.type not in ("cpu", "cuda") or (DEVICE.type == "cuda" and not torch.cuda.is_available()):
        raise pytest.UsageError(f"wrong TEST_DEVICE: expected cpu, or cuda where there is a GPU; got {DEVICE}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked slow, unless they are asked for by --slow or -m."""
    if config.getoption("--slow") or config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, with no CIFAR-10 but the one that a test asks for, on one thread."""
    monkeypatch.chdir(tmp_path)
    for variable in (ENVIRONMENT_VARIABLE, "PL_GLOBAL_SEED"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning takes away when it is used
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that TEST_DEVICE names."""
    return DEVICE


@pytest.fixture(scope="module")
def on_device(device: torch.device) -> Iterator[None]:
    """All tests of a module make their tensors and networks on that device."""
    if device.type == "cpu":  # a default device is a mode, which watches all functions of torch
        yield
        return
    with device:
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no learning curves, which take longer than a small training, where nothing is said of them."""
    curves = "report.draw_learning_curves"
    for drawn in (f"callbacks.{curves}", f"experiments.sweep.{curves}", "experiments.sweep.report.draw_sweep_curves"):
        monkeypatch.setattr(f"cifar_lightning.{drawn}", lambda *args: None)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all that a compiled step does but compile it, which is tested elsewhere and takes long."""

    def call_plainly(function, tensors, module, description):
        return lambda *args: function(*args, *tensors)

    for module in ("step", "stack"):
        monkeypatch.setattr(f"cifar_lightning.compiled.{module}.compile_once", call_plainly)
    monkeypatch.setattr("cifar_lightning.training.obstacles.has_compiler", lambda: True)
    monkeypatch.setattr("cifar_lightning.training.choice.missing_names", list)


@pytest.fixture
def cifar10_dir() -> str:
    """The directory of the real files."""
    if not CIFAR10_DIR:
        pytest.skip("CIFAR10_DIR is not set: no real CIFAR-10")
    return str((ROOT / CIFAR10_DIR).resolve())


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line in this process, and return what it printed."""
    from cifar_lightning.cli.main import main

    def run(*args: str) -> str:
        capfd.readouterr()
        main(list(args))
        printed = capfd.readouterr()
        return printed.out + printed.err

    return run


@pytest.fixture
def fail(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line on a user's mistake, and return the one message that it must end with."""
    from cifar_lightning.cli.main import main

    def fail(*args: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        assert stop.value.code not in (0, None)
        printed = capfd.readouterr().err
        assert "Traceback" not in printed
        assert printed.count("error:") == 1
        return printed[printed.index("error:") :]

    return fail
