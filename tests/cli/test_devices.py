import pytest
import torch
from conftest import SMALL
from lightning.pytorch.accelerators import CPUAccelerator

from cifar_lightning.cli import find_lr
from cifar_lightning.cli.devices import check_devices
from cifar_lightning.experiments.sweep import command as sweep


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index + 1}00")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "auto", None])
@pytest.mark.parametrize("devices", ["auto", None, 1, 2, -1, "-1", "2", [0], [1], [1, 0], "1,", "0,1", "[1]", "0, 1"])
def test_devices_that_are_there(accelerator, devices):
    check_devices(accelerator, devices)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("devices", [3, 0, -2, [2], [0, 0], [], [-1], "2,", "abc", "", "0,0", "[2]", 1.5, True])
def test_gpus_that_are_not_there(devices):
    with pytest.raises(
        ValueError, match=r"no such devices: --trainer.devices must be .* a number from 1 to 2, -1 for all, or "
    ) as error:
        check_devices("gpu", devices)
    assert f"got {devices}. Available: cpu; cuda 0, H100; cuda 1, H200" in str(error.value)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("accelerator", ["cpu", "auto", None])
@pytest.mark.parametrize(("devices", "is_right"), [(1, True), ("4", True), ([1], False), (0, False), ("1,", False)])
def test_a_cpu_has_processes(accelerator, devices, is_right):
    if is_right:
        check_devices(accelerator, devices)
        return
    with pytest.raises(ValueError, match="a number of processes, at least 1, since this runs on the CPU; got"):
        check_devices(accelerator, devices)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("accelerator", "why"),
    [
        ("gpu", "no GPU"),
        ("cuda", "no CUDA device"),
        ("mps", "no Apple GPU"),
        ("GPU", "no GPU"),
        ("tpu", "no torch_xla, which TPUs need"),
    ],
)
def test_accelerators_that_are_not_there(accelerator, why):
    with pytest.raises(
        ValueError, match="no such device: expected --trainer.accelerator auto or an available one"
    ) as error:
        check_devices(accelerator, "auto")
    assert f"got {accelerator}, but there is {why}" in str(error.value)
    assert "cpu; CUDA_VISIBLE_DEVICES='' hides others" in str(error.value)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("flag", ["accelerator=gpu", "accelerator=tpu", "devices=[1]", "devices=abc", "devices=0"])
def test_the_command_line_says_so_in_one_message(fail, tmp_path, flag):
    assert "error: no such device" in fail("fit", *SMALL, f"--trainer.{flag}")
    assert not list(tmp_path.rglob("*"))  # nothing half-written


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("command", "flags"),
    [(find_lr.main, []), (sweep.main, ["--vary={model.lr: [0.02, 0.05]}"])],
    ids=["find-lr", "sweep"],
)
def test_other_commands_that_train_say_so_too(capfd, command, flags):
    with pytest.raises(SystemExit):
        command([*SMALL, *flags, "--trainer.accelerator=gpu"])
    assert "error: no such device: expected --trainer.accelerator auto" in capfd.readouterr().err


def test_an_accelerator_of_a_class_is_lightnings_business():
    check_devices(CPUAccelerator(), "any")
