"""Checks that the devices a run asks for exist, and lists the available ones if not."""

import os
from importlib.util import find_spec
from typing import Any

import torch

#: What is missing if an accelerator is not available.
NOT_HERE = {
    "cuda": "no CUDA device",
    "gpu": "no GPU",
    "mps": "no Apple GPU",
    "tpu": "no torch_xla, which TPUs need",
}


def check_devices(accelerator: Any, devices: Any) -> None:
    """Check that the accelerator and the devices in a trainer's options are available.

    Args:
        accelerator: The Trainer's `accelerator`; objects are left to Lightning.
        devices: The Trainer's `devices`: "auto", a number, a list of indices, or either as a string.

    Raises:
        ValueError: If they are not; the message lists the available ones.
    """
    if not (accelerator is None or isinstance(accelerator, str)):
        return
    asked = (accelerator or "auto").lower()
    kind = _kind(asked)
    if not kind:
        raise ValueError(
            f"no such device: expected --trainer.accelerator auto or an available one ({describe_devices()}), "
            f"got {accelerator}, but there is {NOT_HERE[asked]}"
        )
    if kind in ("cpu", "cuda", "mps") and devices not in (None, "auto"):
        _check_count_or_indices(kind, devices)


def describe_devices() -> str:
    """The devices that torch sees, and what hides or keeps out others."""
    names = [f"cuda {index}, {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    said = "; ".join(["cpu", *names])
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        said += f"; CUDA_VISIBLE_DEVICES={visible!r} hides others"
    if torch.version.cuda is None and torch.version.hip is None:
        said += f"; torch {torch.__version__} is built without CUDA"
    return said


def _kind(asked: str) -> str:
    """The kind of device that an accelerator's name stands for here; "" if there is none."""
    has_cuda, has_mps = torch.cuda.device_count() > 0, torch.backends.mps.is_available()
    gpu = "cuda" if has_cuda else "mps" if has_mps else ""
    here = {
        "auto": gpu or "cpu",
        "gpu": gpu,
        "cuda": "cuda" if has_cuda else "",
        "mps": "mps" if has_mps else "",
        "tpu": "tpu" if find_spec("torch_xla") else "",
    }
    return here.get(asked, asked)


def _check_count_or_indices(kind: str, devices: Any) -> None:
    asked = _parse(devices)
    if kind == "cpu":
        if type(asked) is not int or asked < 1:
            raise _wrong_devices("a number of processes, at least 1, since this runs on the CPU", devices)
        return
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if type(asked) is int and (asked == -1 or 1 <= asked <= there):
        return
    if isinstance(asked, list) and asked and len(set(asked)) == len(asked) and set(asked) <= set(range(there)):
        return
    indices = ", ".join(map(str, range(there)))
    raise _wrong_devices(
        f"auto, a number from 1 to {there}, -1 for all, or a list of distinct indices among {indices}", devices
    )


def _parse(devices: Any) -> int | list[int] | None:
    """A number of devices, or indices; None for what is neither. "1," is the index 1, as Lightning reads it."""
    if not isinstance(devices, str):
        return list(devices) if isinstance(devices, list | tuple) else devices if type(devices) is int else None
    try:
        numbers = [int(part) for part in devices.strip("[] ").split(",") if part.strip()]
    except ValueError:
        return None
    is_list = "," in devices or devices.strip().startswith("[")
    return numbers if is_list or len(numbers) != 1 else numbers[0]


def _wrong_devices(expected: str, devices: Any) -> ValueError:
    return ValueError(
        f"no such devices: --trainer.devices must be {expected}; got {devices}. Available: {describe_devices()}"
    )
