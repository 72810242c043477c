"""Compile a step once: not again for its next call, and not again in the next process.

With all its caches filled, `torch.compile` still traces: Dynamo runs the function symbolically to learn which graph it
stands for, and for a network of 20 layers that takes as long as importing Lightning. But what a step computes is known
without that, by what describes it. The description is the key of the code that `torch.compile(...).aot_compile` gives
and `load_compiled_function` brings back.

Measured on two cores (torch 2.14.1, 20 x 100 SELU, NAdam, batch 32), in alternating runs against calling Inductor's
code directly: a step takes 1.03 of the time with each parameter as an argument, 0.985 with all in one flat tensor; a
warm start takes 0.7 s more, most of which is importing Inductor.
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


#: Seconds that a first compilation takes for each linear layer, and that its code takes to be found again: on two quiet
#: cores 20 x 100 SELU was compiled in 18 s, and with batch norm in 25 s.
SECONDS_PER_LAYER = 1.0
SECONDS_TO_LOAD = 2.0


class CompileError(ValueError):
    """A step that torch can't compile."""


def compile_once(function: Step, tensors: Sequence[Tensor], module: nn.Module, description: Any) -> "Code":
    """Compile a function of its arguments and `tensors`, for arguments of the shapes that it is first called with.

    Args:
        function: Takes arguments, then the tensors, which it may change in place. Its closure holds primitives and
            functions, and the module by the name `module`.
        tensors: They have to stay the same ones.
        module: The module that the function calls with parameters from among the tensors.
        description: All else that decides what the function computes; see `describe`.

    Returns:
        The function of the arguments alone. Its first call compiles, unless an equal step has left its code in the
        cache. A step that runs code of other packages is compiled anew in each process.
    """
    return Code(function, tensors, module, description)


class Code:
    """What `compile_once` returns: a function of the arguments alone, which is compiled or found by its first call."""

    def __init__(self, function: Step, tensors: Sequence[Tensor], module: nn.Module, description: Any) -> None:
        self._function, self._tensors, self._module, self._description = function, tensors, module, description
        self._code: Step | None = None
        #: The file in the cache that holds it; None before the first call, and where none does.
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
            except Exception as error:  # whatever is wrong with an entry: it is made anew
                warnings.warn(f"compiled code in {path} can't be loaded, and is compiled anew: {error}", stacklevel=1)
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
            except Exception as error:  # whatever is wrong with the folder or the code: it serves this process
                warnings.warn(f"compiled code can't be kept in {path.parent}: {error}", stacklevel=1)
        return code


def _concerns_us(record: logging.LogRecord) -> bool:
    """Whether a user needs to see what torch logs: on a CPU it warns of any CUDA toolkit that it comes across."""
    return "No CUDA runtime is found" not in record.getMessage()


def _save_whole(code: Step, path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Save code behind a hash of it: code that was altered could do anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        save_ahead(code, file, modules)
        content = file.read_bytes()
        file.write_bytes(hashlib.sha256(content).digest() + content)
        file.replace(path)


def _read_whole(path: Path) -> bytes:
    """What `save_ahead` wrote.

    Raises:
        ValueError: If it is not whole.
    """
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise ValueError(f"expected it as it was written, received {len(content):,} bytes of another checksum")
    return content[size:]


def seconds_to_compile(recipe: str, layers: int) -> float:
    """About how long the first step of a training will take: it is compiled, or found if `remember` was called.

    Args:
        recipe: What the training says of the step, before there is one.
        layers: Number of linear layers.
    """
    try:
        entry = _mark(recipe).read_text()
    except (OSError, ValueError):  # no such file, or one that was cut short
        entry = ""
    known = bool(entry) and (cache_folder() / entry).is_file()
    return SECONDS_TO_LOAD if known else SECONDS_PER_LAYER * layers


def remember(recipe: str, entry: Path) -> None:
    """Take note that the code of a training with this recipe is in `entry`, a file in the cache.

    In a folder that can't be written, nothing is noted.
    """
    with suppress(OSError):  # it only makes an estimate better
        write_whole(_mark(recipe), entry.name.encode())


def _mark(recipe: str) -> Path:
    versions = f"{recipe} {SOURCES} {torch.__version__} {sys.version}"
    return cache_folder() / f"{hashlib.sha256(versions.encode()).hexdigest()}.known"


def cache_folder() -> Path:
    """Where code is kept: in TORCHINDUCTOR_CACHE_DIR, or else in the user's own folder of caches."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    path = Path(named)
    if path.name.startswith("torchinductor_") and path.parent == Path(gettempdir()):
        named = ""  # it was torch that named it, as it does once Inductor is imported
    return Path(named or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACKAGE


def key_of(step: Any) -> str | None:
    """What tells the code of a step from all other code; None if it runs code of other packages.

    Args:
        step: Its module, arguments and all else that it depends on, for `describe`.
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
    """What else decides which code is generated: versions, settings, the processor."""
    return [
        sys.version,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        [[torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind))] for kind in ("cpu", "cuda")],
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        str(torch.get_default_dtype()),
        torch.backends.mkldnn.enabled,
        SOURCES,
        compiler_settings(),
    ]


def _hash_sources() -> str:
    """A hash of this package's files; "" if it is installed without them."""
    files = [(str(path.relative_to(ROOT)), path.read_bytes()) for path in sorted(ROOT.rglob("*.py"))]
    return hashlib.sha256(repr(files).encode()).hexdigest() if files else ""


#: Of the files as they were imported: if one is changed later, the code that runs is not the file's.
SOURCES = _hash_sources()
