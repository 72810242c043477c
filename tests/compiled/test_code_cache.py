import functools
import logging
import os
import subprocess
import sys
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.overrides import TorchFunctionMode

from cifar_lightning import DeepMLP
from cifar_lightning.compiled import code_cache
from cifar_lightning.compiled.code_cache import key_of
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.step import CompiledStep, has_compiler
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value
from cifar_lightning.nn.mlp import weight_penalty

NETWORK = {"in_features": 12, "num_classes": 3, "hidden_sizes": "2x8", "dropout": "alpha"}


def describe_step(seed=0, optimizer=torch.optim.NAdam, lr=0.1, change=None, clip=None, penalty=None, **arguments):
    """What a step would be compiled from: its tensors, and what is described of it."""
    torch.manual_seed(seed)
    network = DeepMLP(**NETWORK | arguments)
    if change:
        change(network)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifar_lightning.compiled.step.compile_once", lambda *parts: made.append(parts))
        CompiledStep(network, optimizer(network.parameters(), lr=lr), clip, None, penalty)
    ((_, tensors, module, description),) = made
    return tensors, [module, description]


def key(batch=16, dtype=torch.float32, labels=torch.int64, **arguments):
    tensors, description = describe_step(**arguments)
    inputs, targets = torch.randn(batch, 12, dtype=dtype), torch.zeros(batch, dtype=labels)
    return key_of([*description, [inputs, targets, torch.zeros(3), *tensors]])


@pytest.mark.parametrize("arguments", [{"seed": 1}, {"lr": 0.2}])
def test_values_of_tensors_and_the_rate_are_not_in_the_key(arguments):
    assert key() == key(**arguments) is not None


def freeze_statistics(network):
    network.hidden[0].norm.eval()


BATCH_NORM = {"normalization": "batch", "init": "he_normal", "activation": "elu", "dropout": "none"}


@pytest.mark.filterwarnings("ignore:this SELU network")
@pytest.mark.parametrize(
    ("common", "change"),
    [
        ({}, {"hidden_sizes": "2x9"}),
        ({}, {"hidden_sizes": "3x8"}),
        ({}, {"activation": "elu"}),
        ({"activation": "elu"}, {"activation_args": {"alpha": 0.5}}),
        ({}, {"dropout": "standard"}),
        ({}, {"dropout_p": 0.2}),
        ({}, {"dropout_position": "all"}),
        (BATCH_NORM, {"norm_eps": 1e-3}),
        (BATCH_NORM, {"norm_momentum": 0.01}),
        (BATCH_NORM | {"bias": True}, {"norm_position": "after_activation"}),
        (BATCH_NORM, {"change": freeze_statistics}),
        ({}, {"change": nn.Module.eval}),
        ({}, {"change": nn.Module.double}),
        ({}, {"optimizer": torch.optim.SGD}),
        ({}, {"optimizer": torch.optim.Adam}),
        ({}, {"optimizer": partial(torch.optim.NAdam, betas=(0.8, 0.999))}),
        ({}, {"optimizer": partial(torch.optim.NAdam, eps=1e-7)}),
        ({}, {"clip": partial(clip_by_norm, bound=1.0)}),
        ({"clip": partial(clip_by_norm, bound=1.0)}, {"clip": partial(clip_by_norm, bound=2.0)}),
        ({"clip": partial(clip_by_norm, bound=1.0)}, {"clip": partial(clip_by_value, bound=1.0)}),
        ({}, {"penalty": partial(weight_penalty, l1=0.0, l2=0.1)}),
        *[
            ({"penalty": partial(weight_penalty, l1=0.0, l2=0.1)}, {"penalty": partial(weight_penalty, l1=a, l2=b)})
            for a, b in ((0.0, 0.2), (0.1, 0.1))
        ],
        ({}, {"batch": 17}),
        ({}, {"dtype": torch.float64}),
        ({}, {"bias": False}),
        ({}, {"hidden_sizes": [8, 9]}),
        ({"hidden_sizes": [8, 9]}, {"hidden_sizes": [9, 8]}),
        ({}, {"change": lambda network: network.hidden.insert(1, nn.Tanh())}),
        ({}, {"change": lambda network: setattr(network.hidden[0].activation, "inplace", True)}),
        ({}, {"labels": torch.int32}),
    ],
)
def test_all_that_code_depends_on_is_in_the_key(common, change):
    assert None is not key(**common) != key(**common | change) is not None


def test_what_is_around_the_function_is_in_the_key(monkeypatch, tmp_path):
    keys = [key()]
    torch.set_num_threads(2)
    keys.append(key())
    torch.set_num_threads(1)
    with torch._inductor.config.patch(max_autotune=True):
        keys.append(key())
    with torch.no_grad():
        keys.append(key())
    monkeypatch.setattr(code_cache, "ROOT", tmp_path)
    for name in ("layers.py", "part/layers.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        monkeypatch.setattr(code_cache, "SOURCES", code_cache._hash_sources())
        keys.append(key())
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_no_key_where_the_sources_are_not_what_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(code_cache, "ROOT", tmp_path)  # another content
    assert key() is None
    monkeypatch.setattr(code_cache, "SOURCES", code_cache._hash_sources())  # none at all
    assert key() is None


class Doubled(DeepMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Watching(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


def double(module, *args):
    return 2 * args[-1]


def patch_forward(network):
    network.output.forward = MethodType(double, network.output)


@pytest.mark.parametrize(
    "foreign",
    [
        {"change": lambda network: network.hidden[0].register_forward_hook(double)},
        {"change": lambda network: setattr(network.output, "forward", double)},
        {"change": patch_forward},
        {"change": lambda network: setattr(network.output, "forward", functools.cache(double))},
        {
            "change": lambda network: nn.utils.parametrizations.weight_norm(network.output)
        },  # which refuses to be pickled
        {"change": lambda network: setattr(network, "__class__", Doubled)},
        {"clip": lambda gradients: gradients},
        {"clip": partial(double, None)},
    ],
)
def test_foreign_code_has_no_key(foreign):
    assert key(**foreign) is None


def test_what_watches_all_modules_or_functions_leaves_no_key():
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        assert key() is None
    finally:
        handle.remove()
    with Watching():
        assert key() is None
    with torch._inductor.config.patch(post_grad_custom_post_pass=double):
        assert key() is None
    with torch.compiler.config.patch(force_disable_caches=True):
        assert key() is None
    assert key() is not None


def test_a_tensor_of_a_foreign_kind_has_no_key():
    class Image(torch.Tensor):
        pass

    _, description = describe_step()
    assert key_of([*description, torch.zeros(1)]) is not None
    assert key_of([*description, torch.zeros(1).as_subclass(Image)]) is None


def test_a_function_put_in_the_place_of_torchs_leaves_no_key(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "selu", double)
    assert key() is None


def test_a_layer_that_is_met_twice_is_told_from_two_and_from_one():
    first, second, activation = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()
    keys = [
        key_of(nn.Sequential(*layers))
        for layers in (
            [first, activation, second, activation],
            [first, activation, second],
            [first, activation, second, nn.Tanh()],
            [first, activation, first, activation],
        )
    ]
    assert None not in keys
    assert len(set(keys)) == 4


def test_autocast_is_in_the_key():
    plain = key()
    with torch.autocast("cpu", torch.bfloat16):
        assert plain != key() is not None


def test_a_stacks_step_has_a_key(monkeypatch):
    made = []
    monkeypatch.setattr("cifar_lightning.compiled.stack.compile_once", lambda *parts: made.append(parts))
    networks = [DeepMLP(**NETWORK) for _ in range(2)]
    Stack(networks, [torch.optim.NAdam(network.parameters(), lr=0.1) for network in networks], compiled=True)
    ((_, tensors, module, description),) = made
    assert key_of([module, description, tensors]) is not None


@pytest.mark.slow
def test_another_process_has_the_same_key():  # and other hashes of strings, by which sets are ordered
    code = """
from test_code_cache import key, torch
torch.set_num_threads(1)
print(key())
"""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == key() is not None


def step_of(lr=0.1, **arguments):
    torch.manual_seed(0)
    network = DeepMLP(**NETWORK | BATCH_NORM | {"dropout": "standard", "dropout_position": "all"} | arguments)
    return CompiledStep(network, torch.optim.NAdam(network.parameters(), lr=lr))


def test_a_saved_entry_is_read_only_as_it_was_written(monkeypatch, tmp_path):
    monkeypatch.setattr(code_cache, "save_ahead", lambda code, path, modules: path.write_bytes(code))
    path = tmp_path / "new" / "key.bin"
    code_cache._save_whole(b"some code", path, {})
    assert code_cache._read_whole(path) == b"some code"
    assert [file.name for file in path.parent.iterdir()] == ["key.bin"]
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:40], whole + b"x", b"x" + whole[1:], whole[:-1] + b"x"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="expected the file as written, got"):
            code_cache._read_whole(path)


def train(**arguments):
    """Losses of five steps, and the parameters after them."""
    step = step_of(**arguments)
    batches = [(torch.randn(16, 12), torch.arange(16) % 3) for _ in range(5)]
    losses = [step(*batch)[0].item() for batch in batches]
    return losses, [parameter.detach().clone() for parameter in step._parameters]


def traced():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cifar_lightning"


def test_the_folder_is_the_user_s_own_whatever_torch_has_set(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert code_cache.cache_folder() == tmp_path / "cifar_lightning"
    cache_dir()  # as Inductor does: it sets the variable
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert code_cache.cache_folder() == tmp_path / "cifar_lightning"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    assert code_cache.cache_folder() == tmp_path / "named" / "cifar_lightning"


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_an_equal_step_finds_the_code_and_computes_the_same(cache):
    before = traced()
    losses, values = train()
    assert traced() == before + 1
    found, found_values = train()
    assert found == losses
    assert all(map(torch.equal, values, found_values))
    assert train(lr=0.2)[0] != losses
    assert traced() == before + 1
    step = step_of()
    assert step.entry is None
    step(torch.randn(16, 12), torch.arange(16) % 3)
    assert [step.entry] == list(cache.glob("*.bin"))


def test_code_is_known_while_it_is_there(cache):
    cache.mkdir(parents=True)
    entry = cache / "key.bin"
    entry.touch()
    assert code_cache.seconds_to_compile("a recipe", 21) == 21
    code_cache.remember("a recipe", entry)
    assert code_cache.seconds_to_compile("a recipe", 21) == 2
    assert code_cache.seconds_to_compile("another", 21) == 21
    entry.unlink()
    assert code_cache.seconds_to_compile("a recipe", 21) == 21
    next(cache.glob("*.known")).write_bytes(b"")
    assert code_cache.seconds_to_compile("a recipe", 21) == 21


def test_where_nothing_can_be_written_nothing_is_remembered(cache):
    cache.parent.write_text("a file, where a folder would be")
    code_cache.remember("a recipe", cache / "key.bin")
    assert code_cache.seconds_to_compile("a recipe", 21) == 21


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:compiled code in .* can't be loaded")
@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: b"no code at all",
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    ],
    ids=["empty", "other", "truncated", "all but a byte", "one bit"],
)
def test_a_broken_entry_is_made_anew(cache, change):
    losses, _ = train()
    (entry,) = cache.glob("*.bin")
    entry.write_bytes(change(entry.read_bytes()))
    before = traced()
    assert train()[0] == losses
    assert traced() == before + 1
    assert train()[0] == losses
    assert traced() == before + 1  # it is whole again


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_folder_that_can_not_be_written_keeps_nothing(cache):
    cache.parent.mkdir()
    cache.write_text("a file, where the folder would be")
    with pytest.warns(UserWarning, match="compiled code can't be cached in"):
        assert len(train()[0]) == 5


def test_a_cuda_toolkit_is_not_warned_of(monkeypatch, caplog):
    def compile_ahead(function, example):
        for line in ("No CUDA runtime is found, using CUDA_HOME='/cuda'", "no compiler"):
            logging.getLogger("torch.utils.cpp_extension").warning(line)
        return function

    monkeypatch.setattr(code_cache, "compile_ahead", compile_ahead)
    monkeypatch.setattr(code_cache, "key_of", lambda described: None)
    code_cache.compile_once(lambda x: (x,), [], nn.Identity(), None)(torch.zeros(1))
    assert caplog.messages == ["no compiler"]
