"""Finds the run that `--ckpt_path best` and `last` refer to: the newest run of configs with the same content.

A run's saved config begins with a fingerprint of the configs that the run was started with. Flags do not count: a run
started with a config and a flag is found by the config alone.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from cifar_lightning.cli.config_files import config_text, load_config
from cifar_lightning.export.checkpoint_files import read_checkpoint

#: A run's own config, in its folder.
SAVED_CONFIG = "config.yaml"
#: Start of the line with the fingerprints in a saved config.
MARK = "# fingerprints of the configs it was started with:"
CHECKPOINTS = ("best", "last")
#: Prefix of sweeps' folder names: their checkpoints hold several networks.
SWEEP = "sweep_"


def fingerprint(configs: Sequence[str]) -> str:
    """A hash that is the same for configs with the same content, whatever their names, comments and formatting.

    Args:
        configs: Each a file, or the YAML itself.
    """
    contents: list[Any] = [load_config(config) for config in configs]
    said = [content for content in contents if content]
    return sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def own_fingerprints(run: Path) -> list[str]:
    """The fingerprints in a run's saved config; [] if it was written by hand or by an older version."""
    for line in config_text(str(run / SAVED_CONFIG)).splitlines():
        if line.startswith(MARK):
            return line.removeprefix(MARK).split()
        if not line.startswith("#"):
            break
    return []


def is_saved_config(config: str) -> bool:
    """Whether a config is one that a run has saved in its folder."""
    path = Path(config)
    return path.name == SAVED_CONFIG and path.is_file() and bool(own_fingerprints(path.parent))


def find_in_newest_run(named: str, configs: Sequence[str], root: Path, kind: str = "") -> Path:
    """The checkpoint `named` (best or last) of the newest run of the configs below `root`.

    Any configs with the same content match, and so does a run's own saved config.

    Args:
        named: Which checkpoint.
        configs: The configs, each a file or YAML itself.
        root: The folder of the runs.
        kind: `SWEEP` for the newest sweep; "" for the newest run of a single network.

    Raises:
        ValueError: If there is no such run, or it has no such checkpoint.
    """
    runs = sorted(_trainings_of(configs, root, kind), key=_start)
    what = f"a {'sweep' if kind else 'run'} of {' and '.join(configs) if configs else 'no config'} in {root}"
    if not runs:
        others = sorted(_trainings(root, kind), key=_start)
        newest = f" (the newest run of other configs is {others[-1]}: name its file to use it)" if others else ""
        raise ValueError(f"no {named} checkpoint: expected {what}, got none with that content{newest}")
    path = runs[-1] / "checkpoints" / f"{named}.ckpt"
    if named == "last" and not path.is_file():
        path = _last_before(runs) or path
    if not path.is_file():
        raise ValueError(f"no {named} checkpoint: expected {path}, in the newest run, got none")
    return _newest_whole(path) if named == "last" else path


def _last_before(runs: Sequence[Path]) -> Path | None:
    """The last checkpoint of the run before the newest, if the newest was killed before it wrote one.

    The newest may still have a best checkpoint, which a resumed run copies.
    """
    for run in reversed(runs[:-1]):
        if (path := run / "checkpoints" / "last.ckpt").is_file():
            rank_zero_warn(f"{runs[-1]} ended before it wrote a last.ckpt: using {path}, from the run before")
            return path
    return None


def _newest_whole(last: Path) -> Path:
    """The last checkpoint, or if it is damaged, the newest intact one beside it, with a warning."""
    others = sorted(set(last.parent.glob("[!.]*.ckpt")) - {last}, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (last, *others):
        try:
            read_checkpoint(path, "module")
        except ValueError as error:
            rank_zero_warn(f"{error}. Using the one before it, if there is one")
        else:
            return path
    raise ValueError(f"no last checkpoint: expected an intact one in {last.parent}, got only damaged ones")


def _trainings_of(configs: Sequence[str], root: Path, kind: str) -> Iterator[Path]:
    wanted = fingerprint(configs)
    texts = [config_text(config) for config in configs]
    for run in _trainings(root, kind):
        if wanted in own_fingerprints(run) or texts == [config_text(str(run / SAVED_CONFIG))]:
            yield run


def _trainings(root: Path, kind: str) -> Iterator[Path]:
    """The runs of a kind that have a checkpoint."""
    for config in root.glob(f"*/*/{SAVED_CONFIG}"):
        is_sweep = config.parent.name.startswith(SWEEP)
        if is_sweep == (kind == SWEEP) and any(
            (config.parent / "checkpoints" / f"{name}.ckpt").is_file() for name in CHECKPOINTS
        ):
            yield config.parent


def _start(run: Path) -> int:
    """When a run started, which is when its config was written."""
    return (run / SAVED_CONFIG).stat().st_mtime_ns
