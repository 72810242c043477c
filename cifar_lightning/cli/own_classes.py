"""A user's own model and data classes instead of ours, given by import path.

`--model my.module.MyNet`, or `model: my.module.MyNet` in a config, determines which options exist. It is therefore read
and removed from jsonargparse's input before there is a parser. A config may write it in three ways:

    model: my.module.MyNet
    model: {class_path: my.module.MyNet, lr: 0.1}
    model: {class_path: my.module.MyNet, init_args: {lr: 0.1}}

A checkpoint stores the classes that it was trained with. Like its other options, they are used unless the user sets
something else. That imports a module by name; the module must already be installed or in the current folder.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from cifar_lightning.cli.arguments import CONFIG_OPTIONS, CommandLine, is_flag
from cifar_lightning.cli.config_files import load_config, load_value, names_a_file
from cifar_lightning.optim.class_paths import public_path
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.datamodule import CIFAR10DataModule
from cifar_lightning.training.network_class import CHECKPOINT_KEY

#: Option groups that belong to a class: our class, and the base class that any other must have.
GROUPS: dict[str, tuple[type, type]] = {
    "model": (MLPClassifier, LightningModule),
    "data": (CIFAR10DataModule, LightningDataModule),
}


def import_class(path: str, kind: type, option: str) -> type:
    """Import a class by path, from a module that is installed or in the current folder.

    Args:
        path: The import path, such as "my.module.MyNet".
        kind: The required base class.
        option: The option, for error messages.

    Raises:
        ValueError: If there is no such class, or the module can't be imported.
    """
    a = "an" if kind.__name__[0] in "AEIOU" else "a"
    wrong = f"{option}: expected the import path of {a} {kind.__name__}, as in my.module.MyClass; got {path!r}"
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(wrong)
    if module_name not in sys.modules and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for `python -m`; a script has its own folder there instead
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            here = f"it is neither in the current folder, {Path.cwd()}, nor installed"
            raise ValueError(f"{wrong}, but there is no module {error.name!r}: {here}") from error
        raise ValueError(f"{wrong}, but {module_name} can't be imported: it needs {error.name!r}") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{wrong}, but {module_name} can't be imported: {said}") from error
    found = getattr(module, name, None)
    if inspect.isclass(found) and issubclass(found, kind):
        return found
    if found is not None:
        what = "a class of another kind" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise ValueError(f"{wrong}, which is {what}")
    there = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, kind)]
    near = get_close_matches(name, there, n=1)
    hint = f"; did you mean {module_name}.{near[0]}?" if near else ""
    raise ValueError(f"{wrong}, but {module_name} has no {name}{hint}")


def class_paths(classes: Mapping[str, type]) -> dict[str, str]:
    """The import paths of the chosen classes, by group."""
    return {group: public_path(cls) for group, cls in classes.items()}


def own_class_paths(classes: Mapping[str, type]) -> dict[str, str]:
    """The same, without ours."""
    return {group: path for group, path in class_paths(classes).items() if classes[group] is not GROUPS[group][0]}


def choose_classes(line: CommandLine, checkpoint: Mapping[str, Any]) -> dict[str, type]:
    """The classes of model and data, by group: from the command line, or else from the checkpoint, or else ours.

    Raises:
        ValueError: If one can't be imported, or contradicts the checkpoint.
    """
    is_fit = line.head[-1:] == ["fit"]
    chosen: dict[str, type] = {}
    for group, (ours, kind) in GROUPS.items():
        flags = CommandLine(line.without_configs, line.head[-1:])
        # For `fit`, configs count as given; an evaluation may name one only to say which run is meant.
        given = _named(group, line if is_fit else flags)
        stored = checkpoint.get(CHECKPOINT_KEY, {}).get(group)
        path = given or stored or _named(group, line) or ours.__name__
        asks = f"the checkpoint's {group}" if path == stored else f"--{group}"
        chosen[group] = ours if path == ours.__name__ else import_class(path, kind, asks)
        moved = stored is None or stored.rpartition(".")[2] == chosen[group].__name__  # or unchanged
        if not moved and (is_fit or group == "model"):
            raise ValueError(
                f"--{group} contradicts the checkpoint: expected {stored}, as in training, or no such option, "
                f"got {path}"
            )
    return chosen


def _named(group: str, line: CommandLine) -> str | None:
    """The last class given for a group.

    Raises:
        ValueError: If the option has no value.
    """
    named = None
    for rest, value in line.statements(group):
        if rest not in ("", "class_path"):
            continue
        if value in (None, ""):
            option = ".".join(filter(None, (group, rest)))
            raise ValueError(f"--{option} needs a value: expected the import path of a class, got none")
        named = _split({"class_path": value} if rest == "class_path" else value)[0] or named
    return named


def _split(value: Any) -> tuple[str | None, Any]:
    """The class that a group's value names, None for none, and the value without it."""
    if isinstance(value, str):
        return (None, value) if names_a_file(value) else (value, {})
    if not isinstance(value, Mapping) or "class_path" not in value:
        return None, value
    path, arguments = value["class_path"], value.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"wrong class: expected a class_path, and a mapping init_args; got {value}")
    return path, {key: item for key, item in value.items() if key not in ("class_path", "init_args")} | dict(arguments)


def without_classes(arguments: Sequence[str]) -> list[str]:
    """The arguments without the classes of model and data, only with their options, for a parser of these classes."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        option, has_value, value = word.partition("=")
        group, _, rest = option.removeprefix("--").partition(".")
        takes_value = option in CONFIG_OPTIONS or (is_flag(word) and group in GROUPS and rest in ("", "class_path"))
        if takes_value and not has_value:
            value = next(words, "")
        if option in CONFIG_OPTIONS:
            kept.append(f"--config={_config_without_classes(value)}")
        elif takes_value:
            path, options = _split(load_value(value))
            if rest == "" and (path is None or options):
                kept.append(f"{option}={value if path is None else json.dumps(options, default=str)}")
        elif is_flag(word) and group in GROUPS and rest.startswith("init_args."):
            kept.append(word.replace("init_args.", "", 1))
        else:
            kept.append(word)
    return kept


def _config_without_classes(config: str) -> str:
    """The config itself if it names no class, or else YAML without the classes; {} for an empty one."""
    content = load_config(config)
    flat = flatten(content)
    return config if flat == content is not None else json.dumps(flat or {}, default=str)


def flatten(content: Any) -> Any:
    """A config's content without the classes of model and data, with their options directly in the group."""
    if not isinstance(content, Mapping):
        return content
    flat = {}
    for key, value in content.items():
        if key in GROUPS:
            path, rest = _split(value)
            if path is None or rest:
                flat[key] = value if path is None else rest
        else:  # in a config before the subcommand, groups are nested under the subcommand
            flat[key] = flatten(value) if isinstance(value, Mapping) and GROUPS.keys() & value.keys() else value
    return flat


def keep_options(instance: LightningModule | LightningDataModule, options: Mapping[str, Any]) -> None:
    """Save options as hyperparameters if the class does not do so itself: a checkpoint must have them all."""
    missing = {name: value for name, value in options.items() if name not in instance.hparams}
    if missing:
        instance.save_hyperparameters(json.loads(json.dumps(missing, default=str)))
