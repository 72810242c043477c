"""Fills in a command's options from a checkpoint, and rejects options that contradict it.

Options are nested mappings by group, as in {"model": {"lr": 0.1}}. `given` options are those that the user has set on
the command line or, for `fit`, in a config; all others have their defaults.
"""

import json
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from cifar_lightning.cli.arguments import CommandLine
from cifar_lightning.cli.find_run import CHECKPOINTS, find_in_newest_run
from cifar_lightning.export.checkpoint_files import read_checkpoint

Options = Mapping[str, Mapping[str, Any]]
Checkpoint = Mapping[str, Any]

#: Options of the model that checkpoints of version 0.1.0 lack, with the values that they had.
NEWER = {"cutmix": 0.0}
#: Data options that say where the data is, rather than what a network was trained on.
PLACE_OPTIONS = {"data_dir", "download"}
#: Data options that a checkpoint's network depends on even in an evaluation.
NETWORK_OPTIONS = {"classes", "scaling"}

#: Options that only an `MLPClassifier` supports.
ONLY_OURS = (
    "execution.compile",
    "execution.steps",
    "execution.float32_matmul_precision",
    "cycle.resume",
    "pretrained.checkpoint",
    "pretrained.layers",
    "evaluation.ensemble",
    "evaluation.calibrate",
)

EVALUATIONS = ("validate", "test", "predict")
#: The commands in which an option works, for options that do not work in all, and the value that has no effect.
ACTS_IN: dict[str, tuple[Sequence[str], Any]] = {
    "evaluation.mc_samples": (EVALUATIONS, 0),
    "evaluation.ensemble": (EVALUATIONS, None),
    "evaluation.tta_flip": (EVALUATIONS, False),
    "evaluation.tta_shift": (EVALUATIONS, 0),
    "evaluation.calibrate": (("validate",), False),
    "data.images": (("predict",), None),
}
#: The same for options that may occur in a run's saved config when it is evaluated: only the user's own settings count.
ACTS_IF_GIVEN_IN = {"pretrained.checkpoint": (("fit",), None)}


def find_checkpoint(
    named: str | None, subcommand: str, configs: Sequence[str], root: Path, kind: str = ""
) -> str | None:
    """The file that --ckpt_path stands for, where "best" and "last" are those of the newest run of the configs.

    Args:
        named: The value of --ckpt_path.
        subcommand: The command.
        configs: The configs that the user names.
        root: The folder of the runs.
        kind: Kind of run; see `find_in_newest_run`.

    Raises:
        ValueError: If it does not exist, or if an evaluation names none.
    """
    if named is None:
        if subcommand == "fit":
            return None
        raise ValueError(
            f"nothing to {subcommand}: pass a trained network with --ckpt_path FILE (or best or last, with the "
            f"--config it was trained with)"
        )
    if named in CHECKPOINTS:
        return str(find_in_newest_run(named, configs, root, kind))
    if not Path(named).is_file():
        raise ValueError(f"no such checkpoint: expected a file, best or last; got {named!r}")
    return named


def peek_at_checkpoint(line: CommandLine, root: Path, kind: str = "") -> Checkpoint:
    """Read the checkpoint that a command line names, before it is parsed; {} for none.

    Args:
        line: The command line.
        root: The folder of the runs.
        kind: Kind of run; see `find_in_newest_run`.
    """
    named = line.value_of("ckpt_path")
    if named is None:
        given = line.value_of("evaluation.ensemble")
        patterns = given if isinstance(given, list) else [] if given is None else [given]
        members = (path for pattern in patterns for path in sorted(glob(str(pattern))))
        named = next(members, None)
    try:
        path = find_checkpoint(named and str(named), "fit", line.configs, root, kind)
        return read_checkpoint(Path(path), "module") if path else {}
    except ValueError:
        return {}  # there is none; later code reports it if it is needed


def find_members(named: Iterable[str], checkpoint: str) -> list[str] | None:
    """The files of an ensemble's other members, None for none; the checkpoint itself is a member anyway.

    Raises:
        ValueError: If one does not exist.
    """
    members = [path for name in named for path in sorted(glob(name)) or [name]]
    for path in members:
        if not Path(path).is_file():
            raise ValueError(f"no such checkpoint: expected the file of an ensemble member, got {path!r}")
    itself = Path(checkpoint).absolute()
    return [path for path in members if Path(path).absolute() != itself] or None


def find_pretrained(named: str) -> str:
    """The newest file that a name or a pattern matches; the name itself if none does."""
    return max(glob(named), key=os.path.getmtime, default=named)


def refuse_what_can_not_act(options: Options, given: Options, subcommand: str) -> None:
    """Reject options that have no effect in a subcommand.

    Raises:
        ValueError: If there are any.
    """
    for named, table in ((options, ACTS_IN), (given, ACTS_IF_GIVEN_IN)):
        for option, (where, nothing) in table.items():
            group, name = option.split(".")
            if named.get(group, {}).get(name, nothing) != nothing and subcommand not in where:
                raise ValueError(f"--{option} has no effect here: it works with {' or '.join(where)}, got {subcommand}")
    if options["trainer"].get("model_registry") is not None:
        raise ValueError(
            "--trainer.model_registry is not supported, since checkpoints are kept in the run's folder; "
            f"got {options['trainer']['model_registry']!r}"
        )
    evaluation = options["evaluation"]
    others = [name for name in ("ensemble", "tta_flip", "tta_shift") if evaluation[name]]
    if subcommand == "predict" and evaluation["mc_samples"] and others:
        raise ValueError(f"predict takes only one of --evaluation.mc_samples and --evaluation.{others[0]}, got both")


def refuse_what_only_ours_can(given: Options, defaults: Options, model: str) -> None:
    """Reject options that only an `MLPClassifier` supports, for another model.

    Args:
        given: The options that the user has set.
        defaults: The defaults of all options; setting a default has no effect.
        model: The name of the model's class.

    Raises:
        ValueError: If there are any.
    """
    for option in ONLY_OURS:
        group, name = option.split(".")
        if given.get(group, {}).get(name, defaults[group][name]) != defaults[group][name]:
            raise ValueError(f"--{option} has no effect here: it needs an MLPClassifier as the model, got {model}")


def options_of(checkpoint: Checkpoint, known: Options) -> dict[str, dict[str, Any]]:
    """The model and data options that a checkpoint's network was trained with, restricted to known options."""
    stored = {
        "model": checkpoint.get("hyper_parameters", {}),
        "data": checkpoint.get("datamodule_hyper_parameters", {}),
    }
    return {
        group: {name: values[name] for name in values if name in known[group].keys() - PLACE_OPTIONS}
        for group, values in stored.items()
    }


def without_given(stored: Options, given: Options) -> dict[str, dict[str, Any]]:
    """The stored options that the user has not set."""
    return {
        group: {name: value for name, value in values.items() if name not in given.get(group, {})}
        for group, values in stored.items()
    }


def forget_what_a_finder_replaced(given: Mapping[str, MutableMapping[str, Any]], checkpoint: Checkpoint) -> None:
    """Ignore a given learning rate that equals the one the finder replaced: it does not contradict the found one."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and set(state) == {"attribute", "given", "found"}:
            value: Any = given.get("model", {})
            for key in state["attribute"].split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value == state["given"]:
                given["model"].pop(state["attribute"].partition(".")[0])


def forget_what_other_devices_replace(
    given: Mapping[str, MutableMapping[str, Any]], checkpoint: Checkpoint, devices: int
) -> None:
    """Ignore a given batch size per device that results in as many images per step as in the checkpoint."""
    stored, before = checkpoint.get("datamodule_hyper_parameters", {}), len(checkpoint.get("random_generators", ()))
    size, per = given.get("data", {}).get("batch_size"), stored.get("batch_per", "device")
    if size and before != devices and per == "device" and size * devices == stored.get("batch_size", 0) * before:
        del given["data"]["batch_size"]


def refuse_contradictions(given: Options, used: Options, checkpoint: Checkpoint, subcommand: str) -> None:
    """Reject given options that differ from those the checkpoint's network was trained with.

    Args:
        given: The options that the user has set.
        used: The resulting hyperparameters of the model, the data and the pretrained network.
        checkpoint: The checkpoint.
        subcommand: An evaluation may use other data; `fit` must continue with the same.

    Raises:
        ValueError: If there are any.
    """
    stored = {
        "model": NEWER | checkpoint.get("hyper_parameters", {}),
        "data": checkpoint.get("datamodule_hyper_parameters", {}),
        "pretrained": checkpoint.get("callbacks", {}).get("Pretrained", {}) if subcommand == "fit" else {},
    }
    for group, values in stored.items():
        names = set(values) & set(given.get(group, {})) & set(used[group])
        if group == "data":
            names = names - PLACE_OPTIONS if subcommand == "fit" else names & NETWORK_OPTIONS
        for name in sorted(names):
            if _plain(used[group][name]) != _plain(values[name]):
                raise ValueError(
                    f"--{group}.{name} contradicts the checkpoint: expected {values[name]!r}, as in training, or no "
                    f"such option; got {used[group][name]!r}"
                )


def _plain(value: Any) -> Any:
    """Convert tuples in a value to lists, as in YAML and JSON."""
    return json.loads(json.dumps(value, default=str))
