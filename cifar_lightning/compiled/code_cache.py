"""Compile a function of tensors once: not again for its next call, and not again in the next process.

With all its caches filled, `torch.compile` still traces: Dynamo runs the function symbolically to learn which graph it
stands for, and for a network of 20 layers that takes as long as importing Lightning. But what a function computes is
known without that, by its code and by all that the code can read. So here the two are the key of the generated code.
"""

import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

Step = Callable[..., tuple[Tensor, ...]]

PACKAGE = Path(__file__).parent.parent
#: Whose code is known by a version, or by this package's files.
KNOWN_CODE = {PACKAGE.name, "torch", *sys.stdlib_module_names}

#: Inductor's.
OPTIONS = {
    "fallback_random": True,  # dropout masks as in eager mode
    "cpp_wrapper": True,  # kernels called from C++: a tenth of a step at batch 32
    "cpp_cache_precompile_headers": False,  # they would be looked through even where nothing is compiled
}


def compile_once(function: Step) -> Step:
    """Compile a function of tensors for the shapes that it is first called with, and must always be called with.

    What else it reads and writes, parameters and the like, has to stay the same tensors too. So from the second call on
    the generated code is called directly: guards, and what Dynamo and AOTAutograd do around it with each of more than
    a hundred tensors, are a tenth of a step at batch 32.

    On a CPU, a function that can read nothing but tensors and this package's, torch's and Python's own objects finds
    the code that an equal one left in Inductor's cache: at its first call too, nothing is traced. (What is looked at is
    its closure. Functions and classes are taken to be as their files have them, not as somebody has patched them.)
    """
    generated: Step | None = None

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        nonlocal generated
        if generated is None:
            key, tensors = key_of(function, args)
            generated = _load(key, tensors)
        if generated is None:
            results, generated = _compile(function, args, key, tensors)
            return results
        return generated(*args)

    return call


# ---------------------------------------------------------------------------------------------- a function's key


class _Reader(pickle.Pickler):
    """Writes down all that a function can read but for tensors' values, and collects the tensors.

    What has code of its own that the key would not tell from another's is a `PicklingError`.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # by values alone: which equal strings are one object is a process's own
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        """For a tensor, what a graph depends on, and which one it is, since one may be met twice."""
        if not isinstance(obj, Tensor):
            return None
        _check_code(type(obj))
        if obj.device.type not in ("cpu", "meta"):
            raise pickle.PicklingError(f"a tensor on {obj.device}")
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        kind = type(obj).__name__, str(obj.dtype), str(obj.device), str(obj.layout)
        return self._numbers[id(obj)], *kind, tuple(obj.shape), obj.stride(), obj.requires_grad, obj.is_leaf

    def reducer_override(self, obj: Any) -> Any:
        """For a local function, its place in the source and what its closure holds; all else as pickle does it."""
        _check_code(obj)
        if isinstance(obj, MethodType):  # which need not be the one that its object has by that name
            return tuple, ((obj.__self__, obj.__func__),)
        if isinstance(obj, FunctionType) and "<locals>" in obj.__qualname__:
            code, cells = obj.__code__, [cell.cell_contents for cell in obj.__closure__ or ()]
            place = obj.__module__, obj.__qualname__, code.co_firstlineno
            return tuple, ((*place, obj.__defaults__, obj.__kwdefaults__, code.co_freevars, cells),)
        return NotImplemented


def _check_code(obj: Any) -> None:
    """Refuse a function, a class or an object of a class whose code is not known."""
    module = getattr(obj, "__module__", None) or type(obj).__module__
    if module.partition(".")[0] not in KNOWN_CODE:
        raise pickle.PicklingError(f"code of {module}")


def _hash_sources() -> str:
    """A hash of this package's files; "" if it is installed without them."""
    files = [(str(path.relative_to(PACKAGE)), path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))]
    return hashlib.sha256(pickle.dumps(files)).hexdigest() if files else ""


#: Of the files as they were imported: if one is changed later, the code that runs is not the file's.
SOURCES = _hash_sources()


def key_of(function: Step, args: Sequence[Tensor]) -> tuple[str | None, list[Tensor]]:
    """What tells the code of a function, called with arguments such as these, from all other code.

    Returns:
        The key, and the tensors that the function can read besides its arguments, in an order that belongs to the key.
        None and no tensors where other things than its own may decide what it computes, or Inductor has no cache.
    """
    from torch._inductor import config

    modes = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack() or _has_any_global_hook()
    cached = config.fx_graph_cache and not config.force_disable_caches
    if modes or not cached or not SOURCES or _hash_sources() != SOURCES:
        return None, []
    file = io.BytesIO()
    reader = _Reader(file)
    try:
        reader.dump(function)
        tensors = reader.tensors.copy()
        reader.dump((args, SOURCES, _surroundings()))
    except Exception:  # whatever does not let itself be written down has no key
        return None, []
    if len({tensor.untyped_storage()._cdata for tensor in reader.tensors}) < len(reader.tensors):
        return None, []  # some overlap, which makes another graph
    return hashlib.sha256(file.getvalue()).hexdigest(), tensors


def _surroundings() -> tuple[object, ...]:
    """What else decides which code is generated: versions, torch's settings and state, the processor."""
    from torch._C._dynamo.guards import GlobalStateGuard
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    settings = [
        (name, sorted(map(str, value)) if isinstance(value, set) else value)  # whose order is a process's own
        for module in (torch._dynamo, torch._functorch, torch._inductor)
        for name, value in module.config.get_config_copy().items()
        if "_dir" not in name  # some of which are where the process runs
    ]
    versions = sys.version, torch.__version__, torch.version.git_version
    return versions, settings, GlobalStateGuard().__getstate__(), str(pick_vec_isa())


# ---------------------------------------------------------------------------------------------- generated code


def _entry(key: str) -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / PACKAGE.name / f"{key}.json"


def _load(key: str | None, tensors: Sequence[Tensor]) -> Step | None:
    """What calls the code of that key with these tensors, if there is such code."""
    if key is None:
        return None
    from torch._inductor.codecache import PyCodeCache, get_path

    try:
        entry = json.loads(_entry(key).read_text())
        with torch._inductor.config.patch(OPTIONS):
            code = PyCodeCache.load_by_key_path(entry["code"], get_path(entry["code"], "py")[2]).call
    except FileNotFoundError:  # of the entry, or of the code, as when a cleaner of old files came by
        return None
    given = [None if number is None else tensors[number] for number in entry["given"]]
    return _bind(code, given, entry["places"], entry["order"])


def _compile(
    function: Step, args: Sequence[Tensor], key: str | None, tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Step]:
    """Call a function compiled; return its results, and what calls the generated code as this call did."""
    from torch._inductor.codecache import write_atomic
    from torch._inductor.output_code import CompiledFxGraph, CompiledFxGraphConstants

    compiled: Step = torch.compile(  # type: ignore[call-overload]  # whose stubs lack isolate_recompiles
        function,
        fullgraph=True,
        dynamic=False,
        isolate_recompiles=True,  # several networks in a process share no limit
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, **OPTIONS},
    )
    calls: list[tuple[CompiledFxGraph, list[Any], Sequence[Tensor]]] = []
    run: Any = CompiledFxGraph.__call__

    def record(graph: CompiledFxGraph, inputs: list[Tensor]) -> Sequence[Tensor]:
        given = list(inputs)  # which the call empties
        outputs: Sequence[Tensor] = run(graph, inputs)
        calls.append((graph, given, outputs))
        return outputs

    with torch._dynamo.config.patch(trace_autograd_ops=True), patch.object(CompiledFxGraph, "__call__", record):
        results = compiled(*args)
    ((graph, given, outputs),) = calls  # fullgraph
    places = [(i, j) for i, tensor in enumerate(given) for j, arg in enumerate(args) if tensor.is_set_to(arg)]
    order = [next(i for i, output in enumerate(outputs) if output.is_set_to(result)) for result in results]
    assert {j for _, j in places} == {j for j, arg in enumerate(args) if arg.numel()}  # or a first batch would stay
    for i, _ in places:
        given[i] = None
    code = graph.current_callable
    numbers = [None if tensor is None else _find(tensor, tensors) for tensor in given]
    file = getattr(code, "__globals__", {})
    whole = file.get("call") is code and not CompiledFxGraphConstants().unwrap(graph)  # or its file is not all of it
    if key is not None and whole and -1 not in numbers:
        entry = {"code": file["key"], "given": numbers, "places": places, "order": order}
        write_atomic(str(_entry(key)), json.dumps(entry), make_dirs=True)
    return results, _bind(code, given, places, order)


def _find(tensor: Tensor, tensors: Sequence[Tensor]) -> int:
    """The place of a tensor among others, or -1."""
    places = (i for i, other in enumerate(tensors) if other.device == tensor.device and tensor.is_set_to(other))
    return next(places, -1)


def _bind(code: Any, given: Sequence[Tensor | None], places: Sequence[Sequence[int]], order: Sequence[int]) -> Step:
    """A function of what is not given yet.

    Args:
        code: Generated code, which takes a list of tensors, empties it, and returns others.
        given: Its inputs, with None for each argument.
        places: Pairs: the place in `given`, and which of the arguments belongs there.
        order: For each result, its place among what the code returns.
    """

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        inputs = list(given)
        for i, j in places:
            inputs[i] = args[j]
        outputs = code(inputs)
        return tuple(outputs[i] for i in order)

    return call
