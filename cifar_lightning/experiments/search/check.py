"""What can be known to be wrong with a search before its first trial."""

import warnings
from collections.abc import Mapping
from typing import Any

from cifar_lightning.cli.main import CLI
from cifar_lightning.errors import unknown_name
from cifar_lightning.experiments.search.space import SearchSpace
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule


class _ParsedCLI(CLI):
    """Parse a command line, and check what can be checked without training."""

    def instantiate_classes(self) -> None:
        MLPClassifier(**self.subconfig.model.as_dict())
        CIFAR10DataModule(**self.subconfig.data.as_dict())
        self.subcommand = None  # Lightning then runs nothing


def check(space: SearchSpace, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Check a search's space and the arguments that all of its trials share.

    Args:
        space: What varies.
        arguments: Of `lightning`, with the subcommand.

    Returns:
        The options that all trials share, flat, and `arguments` with what a search has to add to them.

    Raises:
        ValueError: If an option can't act in a search, or a point of the space can't be trained with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each trial warns for itself
        base = _ParsedCLI(arguments).subconfig.as_flat()
        config = {name.replace(".init_args", ""): value for name, value in vars(base).items()}
        if config["trainer.devices"] == "auto":  # which would start a process for each GPU
            arguments = [*arguments, "--trainer.devices=1"]
        _refuse_what_can_not_act(config)
        for name in space.options:
            _check_name(name, config)
        for point in space.probes():
            _check_flags(arguments, space.flags(point))
    return config, arguments


def _check_name(name: str, config: Mapping[str, Any]) -> None:
    """Check that an option exists; the arguments of a class depend on the class, and are left to the parser."""
    if any(key == name or key.startswith(f"{name}.") for key in config):
        return
    if f"{name.rpartition('.')[0]}.class_path" in config:
        return
    group = name.partition(".")[0]
    raise unknown_name(
        "option in the search space",
        name,
        [key for key in config if key.startswith(f"{group}.")] or ["model", "data", "trainer"],
    )


def _check_flags(arguments: list[str], flags: list[str]) -> None:
    try:
        _ParsedCLI([*arguments, *flags])
    except ValueError as error:
        raise ValueError(
            f"wrong search space: expected to train with any of its points, received {' '.join(flags)}\n{error}"
        ) from error


def _refuse_what_can_not_act(config: Mapping[str, Any]) -> None:
    devices = config["trainer.devices"]
    one = devices in ("auto", 1, "1") or (isinstance(devices, list) and len(devices) == 1)
    given: dict[str, tuple[Any, bool, Any]] = {
        "ckpt_path": (config["ckpt_path"], config["ckpt_path"] is None, "none"),
        "trainer.devices": (devices, one, "one: processes that share the study make use of several"),
        "trainer.num_nodes": (config["trainer.num_nodes"], config["trainer.num_nodes"] == 1, "1"),
        "trainer.fast_dev_run": (config["trainer.fast_dev_run"], not config["trainer.fast_dev_run"], "false"),
    }
    for name, (value, possible, expected) in given.items():
        if not possible:
            raise ValueError(f"--{name} is not for a search: expected {expected}; received {value}")
