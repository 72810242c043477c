"""Which run `--ckpt_path best` and `last` mean: the newest training of the same configs, by their content.

A run's saved config begins with the fingerprint of the configs that the run was started with. Flags do not count: who
trains with a config and a flag, and then names the config alone, means that run.
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
#: Begins the line of a saved config that has the fingerprints.
MARK = "# fingerprints of the configs it was started with:"
CHECKPOINTS = ("best", "last")
#: What the names of sweeps' folders begin with: their checkpoints are of several networks.
SWEEP = "sweep_"


def fingerprint(configs: Sequence[str]) -> str:
    """A text that is the same for configs of the same content, whatever their names, comments and spelling.

    Args:
        configs: Each a file, or the YAML itself.
    """
    contents: list[Any] = [load_config(config) for config in configs]
    said = [content for content in contents if content]
    return sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def own_fingerprints(run: Path) -> list[str]:
    """The fingerprints in a run's saved config; none if it was written by hand or by an older version."""
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
    """The checkpoint `named` (best or last) of the newest training of the configs below `root`.

    The training may have been started with configs of the same content. A run's saved config means that run too.

    Args:
        named: Which checkpoint.
        configs: Each a file, or the YAML itself.
        root: Where the runs are.
        kind: `SWEEP` for the newest sweep; "" for the newest training of one network.

    Raises:
        ValueError: If there is no such training, or it has no such checkpoint.
    """
    runs = sorted(_trainings_of(configs, root, kind), key=_start)
    what = f"a {'sweep' if kind else 'training'} of {' and '.join(configs) if configs else 'no config'} in {root}"
    if not runs:
        others = sorted(_trainings(root, kind), key=_start)
        newest = f" (the newest of other configs is {others[-1]}: to take it, name its file)" if others else ""
        raise ValueError(f"no {named} checkpoint: expected {what}, got none of that content{newest}")
    path = runs[-1] / "checkpoints" / f"{named}.ckpt"
    if named == "last" and not path.is_file():
        path = _last_before(runs) or path
    if not path.is_file():
        raise ValueError(f"no {named} checkpoint: expected {path}, of the newest training; got none")
    return _newest_whole(path) if named == "last" else path


def _last_before(runs: Sequence[Path]) -> Path | None:
    """The last checkpoint of the training before the newest, which was killed before it wrote any of its own.

    It may have a best one all the same, which a resumed training takes along.
    """
    for run in reversed(runs[:-1]):
        if (path := run / "checkpoints" / "last.ckpt").is_file():
            rank_zero_warn(f"{runs[-1]} was ended before its first last.ckpt: {path} is taken, of the training before")
            return path
    return None


def _newest_whole(last: Path) -> Path:
    """The last checkpoint; the newest that is whole of those beside it if it is damaged, and a line that says so."""
    others = sorted(set(last.parent.glob("[!.]*.ckpt")) - {last}, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (last, *others):
        try:
            read_checkpoint(path, "module")
        except ValueError as error:
            rank_zero_warn(f"{error}. The one before is taken, if there is one")
        else:
            return path
    raise ValueError(f"no last checkpoint: expected one that is whole in {last.parent}, got damaged ones only")


def _trainings_of(configs: Sequence[str], root: Path, kind: str) -> Iterator[Path]:
    wanted = fingerprint(configs)
    texts = [config_text(config) for config in configs]
    for run in _trainings(root, kind):
        if wanted in own_fingerprints(run) or texts == [config_text(str(run / SAVED_CONFIG))]:
            yield run


def _trainings(root: Path, kind: str) -> Iterator[Path]:
    """The runs of a kind that have trained: those with a checkpoint."""
    for config in root.glob(f"*/*/{SAVED_CONFIG}"):
        is_sweep = config.parent.name.startswith(SWEEP)
        if is_sweep == (kind == SWEEP) and any(
            (config.parent / "checkpoints" / f"{name}.ckpt").is_file() for name in CHECKPOINTS
        ):
            yield config.parent


def _start(run: Path) -> int:
    """When a run began: its config is written then."""
    return (run / SAVED_CONFIG).stat().st_mtime_ns
