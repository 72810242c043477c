"""The private parts of torch that compiled steps need.

There is one function per need. `tests/compiled/test_torch_internals.py` looks up each name, so an upgrade that breaks
one fails there with a message that names it. If a name is missing at run time, `missing_names` reports it and steps run
uncompiled. Importing this module does not import Dynamo and Inductor, which takes a second.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Step = Callable[..., tuple[Tensor, ...]]

#: The newest release, (major, minor), that the tests of compiled steps have passed on.
NEWEST_TESTED = (2, 15)

#: The names, by module.
NAMES = {
    "torch": ["_C._len_torch_function_stack", "_C._len_torch_dispatch_stack"],
    "torch.nn.modules.module": ["_has_any_global_hook"],
    "torch.compiler": ["load_compiled_function", "skip_all_guards_unsafe"],
    "torch._dynamo.aot_compile": [
        "AOTCompiledFunction.save_compiled_function",
        "AOTCompiledFunction.disable_guard_check",
    ],
    "torch._dynamo.config": [
        "trace_autograd_ops",
        "specialize_float",
        "automatic_dynamic_shapes",
        "patch",
        "get_config_copy",
    ],
    "torch._inductor.config": [
        "fallback_random",
        "cpp_wrapper",
        "cpp_cache_precompile_headers",
        "cpp_wrapper_build_separate",
        "cpp.vec_isa_ok",
        "patch",
        "get_config_copy",
    ],
}

#: Options of Inductor.
OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # dropout masks as in eager mode
    "cpp_wrapper": True,  # kernels are called from C++: saves a tenth of a step at batch 32
    # These shorten the first compilation without slowing down the step:
    "cpp_cache_precompile_headers": False,  # headers would be scanned even if nothing is compiled
    "cpp_wrapper_build_separate": True,  # the wrapper is built without the kernels' optimizations
    "cpp.vec_isa_ok": True,  # otherwise six small programs are built to find out what the processor supports
}


def missing_names() -> list[str]:
    """The names that this torch lacks; [] if steps can be compiled."""
    missing = []
    for module, names in NAMES.items():
        for name in names:
            try:
                value: Any = import_module(module)
                for part in name.split("."):
                    value = getattr(value, part)
            except (ImportError, AttributeError):
                missing.append(f"{module}.{name}")
    return missing


def is_newer_than_tested() -> bool:
    """Whether this torch is newer than any that compiled steps were tested with."""
    major, minor, *_ = torch.__version__.split(".")
    return (int(major), int(minor)) > NEWEST_TESTED


@contextmanager
def _settings(on_cpu: bool = True) -> Iterator[None]:
    """Set Dynamo's and Inductor's options for compiling and loading steps."""
    import torch._dynamo.config
    import torch._inductor.config

    dynamo: dict[str, Any] = {
        "trace_autograd_ops": True,  # `torch.autograd.grad` in a graph
        # Each network is new: numbers and shapes that differ from the previous one's must not become variables.
        "specialize_float": True,
        "automatic_dynamic_shapes": False,
    }
    if hasattr(torch._dynamo.config, "enable_aot_compile"):  # torch 2.11 offers `aot_compile` only with it
        dynamo["enable_aot_compile"] = True
    # (A CUDA graph needs no wrapper, whose compilation would require CUDA's headers.)
    options = OPTIONS | {"cpp_wrapper": on_cpu}
    with torch._dynamo.config.patch(dynamo), torch._inductor.config.patch(options):
        yield


def compile_ahead(function: Step, example: Sequence[Tensor]) -> Step:
    """Compile a function of tensors for arguments like the example, without calling it.

    The function's closure may hold modules, functions and primitives, but no tensors.
    """
    with _settings(on_cpu=not any(tensor.is_cuda for tensor in example)):
        compiled: Any = torch.compile(
            function,
            fullgraph=True,
            dynamic=False,
            # The caller guarantees what guards would check.
            options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
        )
        return _without_guards(compiled.aot_compile((tuple(example), {})))


def save_ahead(code: Any, path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Save the result of `compile_ahead`, except the modules in the function's closure."""
    code.save_compiled_function(str(path), external_data=modules)


def load_ahead(saved: bytes, modules: dict[str, nn.Module]) -> Step:
    """Load code that `save_ahead` saved, with modules like the original ones."""
    # With other settings, the code's libraries would be built again.
    with _settings():
        return _without_guards(torch.compiler.load_compiled_function(BytesIO(saved), external_data=modules))


def _without_guards(code: Any) -> Step:
    code.disable_guard_check()
    step: Step = code
    return step


def has_foreign_modes() -> bool:
    """Whether a torch function or dispatch mode is active, which may change what a step does."""
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


def keeps_code() -> bool:
    """Whether Inductor may cache the code it generates."""
    import torch._inductor.config

    return bool(torch._inductor.config.fx_graph_cache and not torch._inductor.config.force_disable_caches)


def compiler_settings() -> str:
    """All settings of Dynamo and Inductor that may affect the generated code, as JSON.

    Raises:
        TypeError: If one of them is code.
    """
    import torch._dynamo.config
    import torch._inductor.config

    settings = {
        f"{module.__name__}.{name}": sorted(map(str, value)) if isinstance(value, set) else value
        for module in (torch._dynamo.config, torch._inductor.config)
        for name, value in module.get_config_copy().items()
        if not name.endswith(("_dir", "_dir_root"))  # some depend on the working directory
    }
    return json.dumps(settings, sort_keys=True)


def mark_stepped(optimizer: Optimizer) -> None:
    """Mark the optimizer as used: a scheduler warns about an optimizer whose `step` was never called."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
