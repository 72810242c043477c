"""A cache of compiled steps: each is compiled once, and loaded from disk in later processes.

Even with warm caches, `torch.compile` still traces: Dynamo runs the function symbolically to find its graph, which for
a network of 20 layers takes as long as importing Lightning. A description of the step identifies it without tracing.
The description is the cache key of the code that `torch.compile(...).aot_compile` returns and `load_compiled_function`
loads.

Measured on two cores (torch 2.14.1, 20 x 100 SELU, NAdam, batch 32), in alternating runs against calling Inductor's
code directly: a step takes 1.03 times as long with each parameter as an argument, and 0.985 times with all in one flat
tensor; a warm start takes 0.7 s longer, mostly for importing Inductor.
"""

import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.compiled.description import PACKAGE, UndescribedError, check_functions, describe
from cifar_lightning.compiled.torch_internals import (
    Step,
    compile_ahead,
    compiler_settings,
    has_foreign_modes,
    keeps_code,
    load_ahead,
    save_ahead,
)
from cifar_lightning.files import write_whole

ROOT = Path(__file__).parent.parent


#: Seconds that compilation takes per linear layer, and that loading cached code takes: on two idle cores, 20 x 100 SELU
#: compiled in 18 s, and with batch norm in 25 s.
SECONDS_PER_LAYER = 1.0
SECONDS_TO_LOAD = 2.0


class CompileError(ValueError):
    """Torch can't compile a step."""


def compile_once(function: Step, tensors: Sequence[Tensor], module: nn.Module, description: Any) -> "Code":
    """Compile a function of its arguments and `tensors`, for the shapes of the arguments in its first call.

    Args:
        function: Takes the arguments, then the tensors, which it may change in place. Its closure holds primitives,
            functions, and the module under the name `module`.
        tensors: Fixed tensors; they must stay the same objects.
        module: The module that the function calls with parameters from `tensors`.
        description: Everything else that determines what the function computes; see `describe`.

    Returns:
        A function of the arguments alone. Its first call compiles, unless the cache has the code of an equal step. A
        step that runs code of other packages is recompiled in each process.
    """
    return Code(function, tensors, module, description)


class Code:
    """The result of `compile_once`: a function of the arguments alone, compiled or loaded by its first call."""

    def __init__(self, function: Step, tensors: Sequence[Tensor], module: nn.Module, description: Any) -> None:
        self._function, self._tensors, self._module, self._description = function, tensors, module, description
        self._code: Step | None = None
        #: Its file in the cache; None before the first call, or if it is not cached.
        self.entry: Path | None = None

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Call the function.

        Raises:
            CompileError: From the first call, if torch can't compile it.
        """
        if self._code is None:
            self._code = self._find_or_compile([*args, *self._tensors])
        return self._code(*args, *self._tensors)

    def _find_or_compile(self, example: Sequence[Tensor]) -> Step:
        logging.getLogger("torch.utils.cpp_extension").addFilter(_concerns_us)
        key = key_of([self._module, self._description, example])
        path = None if key is None else cache_folder() / f"{key}.bin"
        modules = {"module": self._module}
        if path is not None and path.is_file():
            try:
                code = load_ahead(_read_whole(path), modules)
            except Exception as error:  # whatever is wrong with an entry, recompiling fixes it
                warnings.warn(f"compiled code in {path} can't be loaded, recompiling: {error}", stacklevel=1)
            else:
                self.entry = path
                return code
        try:
            code = compile_ahead(self._function, example)
        except Exception as error:
            raise CompileError(str(error) or type(error).__name__) from error
        if path is not None:
            try:
                _save_whole(code, path, modules)
                self.entry = path
            except Exception as error:  # whatever is wrong with the folder, this process can still use the code
                warnings.warn(f"compiled code can't be cached in {path.parent}: {error}", stacklevel=1)
        return code


def _concerns_us(record: logging.LogRecord) -> bool:
    """Whether a user needs to see what torch logs: on a CPU it warns of any CUDA toolkit that it comes across."""
    return "No CUDA runtime is found" not in record.getMessage()


def _save_whole(code: Step, path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Save code with its hash in front, since altered code could do anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        save_ahead(code, file, modules)
        content = file.read_bytes()
        file.write_bytes(hashlib.sha256(content).digest() + content)
        file.replace(path)


def _read_whole(path: Path) -> bytes:
    """Read what `_save_whole` wrote.

    Raises:
        ValueError: If the file is incomplete or altered.
    """
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise ValueError(f"expected the file as written, got {len(content):,} bytes with another checksum")
    return content[size:]


def seconds_to_compile(recipe: str, layers: int) -> float:
    """Estimate how long the first step of a run takes: it is compiled, or loaded if `remember` was called.

    Args:
        recipe: A text that identifies the step before it exists.
        layers: Number of linear layers.
    """
    try:
        entry = _mark(recipe).read_text()
    except (OSError, ValueError):  # no such file, or a truncated one
        entry = ""
    known = bool(entry) and (cache_folder() / entry).is_file()
    return SECONDS_TO_LOAD if known else SECONDS_PER_LAYER * layers


def remember(recipe: str, entry: Path) -> None:
    """Record that `entry`, a file in the cache, holds the code of runs with this recipe.

    Does nothing if the folder is read-only.
    """
    with suppress(OSError):  # it only improves an estimate
        write_whole(_mark(recipe), entry.name.encode())


def _mark(recipe: str) -> Path:
    versions = f"{recipe} {SOURCES} {torch.__version__} {sys.version}"
    return cache_folder() / f"{hashlib.sha256(versions.encode()).hexdigest()}.known"


def cache_folder() -> Path:
    """The cache folder: in TORCHINDUCTOR_CACHE_DIR, or else in the user's cache directory."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    path = Path(named)
    if path.name.startswith("torchinductor_") and path.parent == Path(gettempdir()):
        named = ""  # torch itself set it, as it does when Inductor is imported
    return Path(named or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACKAGE


def key_of(step: Any) -> str | None:
    """The cache key of a step; None if it runs code of other packages.

    Args:
        step: Its module, its arguments and everything else that it depends on, for `describe`.
    """
    if has_foreign_modes() or not keeps_code() or not SOURCES or _hash_sources() != SOURCES:
        return None
    try:
        check_functions()
        described = json.dumps([describe(step), _surroundings()])
    except (UndescribedError, TypeError):
        return None
    return hashlib.sha256(described.encode()).hexdigest()


def _surroundings() -> list[Any]:
    """What else affects the generated code: versions, settings, the processor."""
    return [
        sys.version,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        [[torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind))] for kind in ("cpu", "cuda")],
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        [of.matmul.fp32_precision for of in (torch.backends.mkldnn, torch.backends.cuda)],
        str(torch.get_default_dtype()),
        torch.backends.mkldnn.enabled,
        SOURCES,
        compiler_settings(),
    ]


def _hash_sources() -> str:
    """A hash of this package's files; "" if it is installed without them."""
    files = [(str(path.relative_to(ROOT)), path.read_bytes()) for path in sorted(ROOT.rglob("*.py"))]
    return hashlib.sha256(repr(files).encode()).hexdigest() if files else ""


#: The hash at import time: if a file changes later, the running code is not the file's.
SOURCES = _hash_sources()
