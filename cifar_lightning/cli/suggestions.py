"""Suggests the right option for a wrong one: by its name in other programs, its group or its spelling."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

#: Names of options in other programs, and the equivalent here; {} is the value. A name that only lacks its group, such
#: as max_epochs, needs no entry.
SYNONYMS = {
    "b": "--data.batch_size {}",
    "amp": "--trainer.precision bf16-mixed",
    "batch": "--data.batch_size {}",
    "bs": "--data.batch_size {}",
    "checkpoint": "--ckpt_path {}",
    "ckpt": "--ckpt_path {}",
    "clip_grad": "--trainer.gradient_clip_val {}",
    "cpu": "--trainer.accelerator cpu",
    "cuda": "--trainer.accelerator gpu",
    "data_path": "--data.data_dir {}",
    "dataset": "--data.data_dir {}",
    "debug": "--trainer.fast_dev_run true",
    "device": "--trainer.accelerator {}",
    "dropout_rate": "--model.dropout alpha (or standard) --model.dropout_p {}",
    "early_stopping": "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_loss",
    "epochs": "--trainer.max_epochs {}",
    "fp16": "--trainer.precision 16-mixed",
    "gpu": "--trainer.accelerator gpu --trainer.devices {}",
    "gpus": "--trainer.accelerator gpu --trainer.devices {}",
    "grad_clip": "--trainer.gradient_clip_val {}",
    "gradient_accumulation_steps": "--trainer.accumulate_grad_batches {}",
    "hidden": "--model.hidden_sizes {}",
    "hidden_dims": "--model.hidden_sizes {}",
    "initializer": "--model.init {}",
    "layers": "--model.hidden_sizes {}",
    "learning_rate": "--model.lr {}",
    "log_dir": "--trainer.default_root_dir {}",
    "lr_scheduler": "--model.schedule {}",
    "mixed_precision": "--trainer.precision bf16-mixed",
    "momentum": "--model.optimizer SGD --model.optimizer.momentum {}",
    "num_epochs": "--trainer.max_epochs {}",
    "opt": "--model.optimizer {}",
    "out": "--trainer.default_root_dir {}",
    "output_dir": "--trainer.default_root_dir {}",
    "patience": "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_loss "
    "--trainer.callbacks.patience={}",
    "pretrained": "--pretrained.checkpoint {}",
    "resume": "--ckpt_path {}",
    "resume_from_checkpoint": "--ckpt_path {}",
    "save_dir": "--trainer.default_root_dir {}",
    "scheduler": "--model.schedule {}",
    "seed": "--seed_everything {}",
    "steps": "--trainer.max_steps {}",
    "wd": "--model.optimizer.weight_decay {}",
    "weight_decay": "--model.optimizer.weight_decay {}",
    "weights": "--ckpt_path {}",
}
#: Options that do not exist because they are not needed, and why.
NOT_NEEDED = {
    "j": "all images are in memory, so no workers load them",
    "workers": "all images are in memory, so no workers load them",
    "num_workers": "all images are in memory, so no workers load them",
    "pin_memory": "all images are in memory, and batches are moved to the device as bytes",
}


def suggest(name: str, value: Any, options: Collection[str], in_config: bool = False) -> str:
    """A suggestion to append to an error about a wrong option: ": did you mean ...?", or "" if nothing is close.

    Args:
        name: The wrong name, without dashes.
        value: Its value; "" for none.
        options: The names of all options, without dashes.
        in_config: Whether it is in a config rather than on the command line.
    """
    group, _, leaf = name.lower().replace("-", "_").rstrip("+").rpartition(".")
    if leaf in NOT_NEEDED:
        return f" and not needed: {NOT_NEEDED[leaf]}"
    meant = _meaning(group, leaf, value, [name for name in options if not name.endswith(("+", "help"))])
    if in_config:
        meant = re.sub(r"--(\S+?)(?: |=|$)(\S*)", r"\1: \2", meant).rstrip(" :")
    return f": did you mean {meant.strip()}?" if meant else ""


def _meaning(group: str, leaf: str, value: Any, options: Sequence[str]) -> str:
    """The option that is probably meant, with its value, as on the command line; "" if nothing is close."""
    given = value if isinstance(value, str | int | float) else ""
    if leaf == "dropout" and "model.dropout_p" in options and _is_number(value):
        leaf = "dropout_rate"
    if leaf == "device" and str(value).startswith("cuda"):
        leaf = "cuda"
    synonym = SYNONYMS.get(leaf, "")
    target = re.split(r"[ +=]", synonym.removeprefix("--"))[0]
    if target in options or target.rpartition(".")[0] in options:  # or an argument of a class
        return synonym.format(given)
    near = _near(group, leaf, options)
    return f"--{near} {given}" if near else ""


def _near(group: str, leaf: str, options: Sequence[str]) -> str:
    """The option with the most similar name, within the group if it exists; "" for none."""
    leaves: dict[str, list[str]] = {}
    for option in options:
        leaves.setdefault(option.rpartition(".")[2], []).append(option)
    same = [option for option in leaves.get(leaf, []) if option.rpartition(".")[0] == group]
    if leaf in leaves:
        return (same or leaves[leaf])[0]
    in_group = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == group}
    if group and in_group:
        leaves = {name: [option] for name, option in in_group.items()}
    nearest = [name for name in leaves if name.startswith(leaf)] or get_close_matches(leaf, leaves, n=1, cutoff=0.6)
    return leaves[nearest[0]][0] if nearest and (len(leaf) > 2 or group) else ""


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
