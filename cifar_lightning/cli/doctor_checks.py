"""The checks of `doctor`, one function each.

Torch and Lightning are imported only where they are needed, since a broken import may be what there is to find.
"""

import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

from cifar_lightning.extras import EXTRAS, install_command, missing_modules

PROVIDE_DATA = (
    "put cifar-10-python.tar.gz or the folder cifar-10-batches-py into a folder and set CIFAR10_DIR to it; or train on "
    "synthetic images with --data.source synthetic"
)
LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse")


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        subject: The subject, in a word or two.
        text: What was found.
        remedy: What needs to be done; "" for nothing.
    """

    subject: str
    text: str
    remedy: str = ""


def check_versions() -> Finding:
    """Check versions against the package's requirements."""
    python = f"Python {platform.python_version()} on {platform.system()} ({platform.machine()})"
    texts = [python, *(f"{name} {_version(name) or 'not installed'}" for name in ("cifar_lightning", *LIBRARIES))]
    try:
        requirements = _requirements()
    except metadata.PackageNotFoundError:
        return Finding("versions", ", ".join(texts), "the package is not installed: run pip install . in the checkout")
    wrong = [f'"{requirement.name}{requirement.specifier}"' for requirement in requirements if not _fits(requirement)]
    return Finding("versions", ", ".join(texts), f"pip install {' '.join(wrong)}" if wrong else "")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _fits(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return bool(version) and requirement.specifier.contains(version, prereleases=True)


def _requirements() -> list[Requirement]:
    """The package's requirements, without its extras."""
    requirements = map(Requirement, metadata.requires("cifar_lightning") or [])
    return [each for each in requirements if each.marker is None or "extra" not in str(each.marker)]


def check_imports() -> Finding:
    """Check that the libraries can be imported together."""
    for name in LIBRARIES:
        try:
            import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            remedy = "pip install --force-reinstall torch torchvision, which must match" if "torch" in name else ""
            return Finding("imports", f"{name} can't be imported: {reason}", remedy or f"pip install {name}")
    return Finding("imports", f"{', '.join(LIBRARIES[:-1])} and {LIBRARIES[-1]} work together")


def check_devices() -> Finding:
    """The devices that torch can use."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple's GPU (mps)")
    if devices:
        return Finding("devices", f"{', '.join(devices)}; --trainer.accelerator auto uses the first kind")
    if shutil.which("nvidia-smi"):
        kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
        remedy = f"install a matching torch or driver: this torch is built for {kind} and finds no GPU"
        return Finding("devices", "CPU only, although there is an NVIDIA driver", remedy)
    return Finding("devices", "CPU only")


def check_cores() -> Finding:
    """Count cores and threads."""
    import torch

    from cifar_lightning.compiled.threads import usable_cores

    set_by = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "torch"
    return Finding("cores", f"{usable_cores()} usable; {torch.get_num_threads()} threads, set by {set_by}")


def check_compiled_steps() -> Finding:
    """Check whether training steps can be compiled."""
    import torch

    from cifar_lightning.compiled.step import has_compiler
    from cifar_lightning.compiled.torch_internals import NEWEST_TESTED, is_newer_than_tested, missing_names

    text, remedy = "possible", ""
    if missing := missing_names():
        text = f"impossible: torch {torch.__version__} lacks {', '.join(missing)}"
        remedy = f"pip install torch=={'.'.join(map(str, NEWEST_TESTED))}.*"
    elif not has_compiler():
        text = "impossible on CPUs: no C++ compiler; training uses plain steps, which are several times slower"
        remedy = "install g++ or clang++, or set the environment variable CXX to a compiler"
    elif is_newer_than_tested():
        text = f"possible, but untested with torch {torch.__version__}: only --execution.compile always tries them"
    return Finding("compiled steps", text, remedy)


def check_data() -> Finding:
    """Find CIFAR-10 and read all of it; nothing is downloaded."""
    from cifar_lightning.data.sources import ENVIRONMENT_VARIABLE, find_data_dir, find_official, load_official

    named = os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        directory = find_data_dir(None)
        place = find_official(directory)
        if place is None:
            where = f"{directory.absolute()}, " + (f"set by {ENVIRONMENT_VARIABLE}" if named else "the default folder")
            return Finding("CIFAR-10", f"not in {where}", f"the first run downloads 170 MB there; or {PROVIDE_DATA}")
        images = load_official(place)
    except ValueError as error:
        return Finding("CIFAR-10", str(error).partition("\n")[0], PROVIDE_DATA)
    kind = "unpacked" if place.is_dir() else "as the archive"
    how = f"through {ENVIRONMENT_VARIABLE}" if named else "in the default folder"
    counts = f"{len(images.train_images):,} and {len(images.test_images):,} images"
    return Finding("CIFAR-10", f"{place.absolute()}\nfound {how}, {kind}: {counts}, checksums correct")


def check_extras() -> Finding:
    """Check which extras are installed."""
    missing = {extra: missing_modules(extra) for extra in EXTRAS}
    states = [f"{extra}: " + (f"no {', '.join(names)}" if names else "installed") for extra, names in missing.items()]
    lacking = [extra for extra, names in missing.items() if names]
    return Finding(
        "extras", "; ".join(states), f"for {' and '.join(lacking)}, {install_command(*lacking)}" if lacking else ""
    )


def check_script() -> Finding:
    """Check which package owns the `lightning` script; lightning-sdk and litserve install one too."""
    own = shutil.which("cifar-lightning")
    script = shutil.which("lightning")
    text = f"cifar-lightning is {own or 'not on the path'}\n"
    remedy = "" if own else f"put {Path(sys.executable).parent} on the path, or use python -m cifar_lightning"
    if script is None:
        return Finding("scripts", f"{text}lightning is not on the path", remedy)
    owner = owner_of(Path(script))
    if owner != "cifar_lightning":
        remedy = remedy or "nothing, if you use cifar-lightning instead of lightning"
    return Finding("scripts", f"{text}lightning is {script}, from {owner or 'an unknown package'}", remedy)


def owner_of(script: Path) -> str:
    """The package that installed a script; "" if it can't be found."""
    code = script.read_bytes()
    if zipfile.is_zipfile(script):  # a script for Windows ends with its code in an archive
        code = zipfile.ZipFile(script).read("__main__.py")
    for entry in metadata.entry_points(group="console_scripts", name="lightning"):
        if entry.module.encode() in code and entry.dist is not None:
            return entry.dist.name
    return ""


def check_runs() -> Finding:
    """Check whether runs can be written here."""
    return _check_writable("runs", Path("runs"), "work in a writable folder, or set --trainer.default_root_dir to one")


def check_cache() -> Finding:
    """Check whether compiled code can be cached."""
    from cifar_lightning.compiled.code_cache import cache_folder

    return _check_writable("cache", cache_folder(), "set TORCHINDUCTOR_CACHE_DIR to a writable folder")


def _check_writable(subject: str, folder: Path, remedy: str) -> Finding:
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(subject, f"{folder}: not writable: {error.strerror}", remedy)
    return Finding(subject, f"{folder}: writable")


CHECKS: dict[str, Callable[[], Finding]] = {
    "versions": check_versions,
    "imports": check_imports,
    "devices": check_devices,
    "cores": check_cores,
    "compiled steps": check_compiled_steps,
    "CIFAR-10": check_data,
    "extras": check_extras,
    "scripts": check_script,
    "runs": check_runs,
    "cache": check_cache,
}
