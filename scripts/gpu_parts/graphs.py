"""The fast path without Lightning: speed and correctness of CUDA graphs and of stacks of networks."""

import copy
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lightning import CompiledStep, DeepMLP
from cifar_lightning.compiled.cuda_graph import GraphedSteps, StepParts
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.step import has_compiler
from gpu_parts.common import LeftOut, Row, Settings, check, expect

BATCH_SIZES = (128, 32, 512)
#: Precision for comparisons: where a gradient is only rounding error, NAdam still takes a full step.
EXACT = torch.float64
#: Number of steps at once, as in one of Lightning's hooks.
HOOK = 50
NEVER = 10**9


def _make_network(
    settings: Settings, seed: int = 1, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = DeepMLP(hidden_sizes=settings.hidden_sizes, **options).to(settings.device, dtype)
    return network, torch.optim.NAdam(network.parameters(), lr=5e-5)


def _make_images(settings: Settings) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (settings.images, 3072), dtype=torch.uint8, generator=generator)
    return images.to(settings.device), (torch.arange(settings.images) % 10).to(settings.device)


def _train_epoch(
    steps: GraphedSteps, images: Tensor, labels: Tensor, batch_size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Train on the images once, in an order drawn from the default generator, and return the last loss."""
    for hook in torch.randperm(len(images)).split(HOOK * batch_size):
        chosen = hook.to(images.device)
        batches = zip(
            images.index_select(0, chosen).to(dtype).div(255).split(batch_size),
            labels.index_select(0, chosen).split(batch_size),
            strict=True,
        )
        for loss, _ in steps.run_all(batches):
            last = loss
    return last


def _time(settings: Settings, steps: GraphedSteps, batch_size: int) -> Row:
    images, labels = _make_images(settings)
    settings.reset_peak()
    times = []
    for _ in range(settings.epochs + 1):
        settings.synchronize()
        start = time.perf_counter()
        last = _train_epoch(steps, images, labels, batch_size)
        settings.synchronize()
        times.append(time.perf_counter() - start)
    expect(bool(torch.isfinite(last).all()), "the loss is not finite")
    return {"seconds": round(min(times[1:]), 4), "first": round(times[0], 2), "peak_mb": settings.peak_mb()}


# ------------------------------------------------------------------------------------------------------- of one network


def graphs(settings: Settings) -> Iterator[Row]:
    """Checks that graphs change nothing, and times graphs of different numbers of steps."""
    for dropout in ("none", "alpha"):
        yield check(f"graphs compute what direct calls do, dropout {dropout}", partial(_compare, settings, dropout))

    def run(several: int, warm_up: int, batch_size: int) -> Row:
        network, optimizer = _make_network(settings)
        return _time(settings, GraphedSteps(CompiledStep(network, optimizer), None, several, warm_up), batch_size)

    for batch_size in BATCH_SIZES:
        yield check(f"direct calls, batch {batch_size}", partial(run, 1, NEVER, batch_size))
        for several in (1, 10, 50):
            what = f"graphs of {several} step{'s' * (several > 1)}, batch {batch_size}"
            yield check(what, partial(run, several, 3, batch_size))
    torch.set_float32_matmul_precision("high")
    yield check(f"graphs of 10 steps, TF32, batch {BATCH_SIZES[0]}", partial(run, 10, 3, BATCH_SIZES[0]))


def _compare(settings: Settings, dropout: str) -> Row:
    results = []
    for warm_up in (3, NEVER):
        network, optimizer = _make_network(settings, dtype=EXACT, dropout=dropout, dropout_position="all")
        steps = GraphedSteps(CompiledStep(network, optimizer), warm_up=warm_up)
        images, labels = _make_images(settings)
        torch.manual_seed(5)
        _train_epoch(steps, images[:3_000], labels[:3_000], 64, EXACT)
        steps.close()
        results.append([*network.parameters(), torch.rand(3, device=settings.device)])
    differences = [(ours - theirs).abs().max().item() for ours, theirs in zip(*results, strict=True)]
    expect(differences.pop() == 0, "the generator is in a different state")
    expect(max(differences) < 1e-9, f"parameters differ by {max(differences):.1e}")
    return {"bitwise": max(differences) == 0, "greatest_difference": f"{max(differences):.1e}"}


def inductor(settings: Settings) -> Iterator[Row]:
    """Inductor's code for a step, within graphs."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.folder / "inductor")

    def run(batch_size: int) -> Row:
        if settings.device == "cpu" and not has_compiler():
            raise LeftOut("there is no C++ compiler")
        network, optimizer = _make_network(settings)
        step = CompiledStep(network, optimizer)
        parts: StepParts = copy.copy(step)
        parts.eager = step.compiled
        short = settings.images - settings.images % batch_size  # a last, short batch would be compiled too
        return _time(replace_images(settings, short), GraphedSteps(parts), batch_size)

    for batch_size in BATCH_SIZES[: 1 if settings.device == "cpu" else 3]:
        yield check(f"graphs of 10 steps of Inductor's code, batch {batch_size}", partial(run, batch_size))


def replace_images(settings: Settings, images: int) -> Settings:
    """Return the settings with a different number of images."""
    return Settings(**vars(settings) | {"images": images})


def reduce_overhead(settings: Settings) -> Iterator[Row]:
    """`torch.compile(mode="reduce-overhead")`, used in the common way."""

    def run(batch_size: int) -> Row:
        if settings.device == "cpu" and not has_compiler():
            raise LeftOut("there is no C++ compiler")
        network, optimizer = _make_network(settings)
        if settings.device == "cuda":
            optimizer = torch.optim.NAdam(network.parameters(), lr=5e-5, capturable=True)
        compiled = torch.compile(network, mode="reduce-overhead")
        update = torch.compile(optimizer.step) if settings.device == "cuda" else optimizer.step
        images, labels = _make_images(settings)
        count = settings.images // batch_size
        settings.reset_peak()
        times = []
        for _ in range(settings.epochs + 1):
            settings.synchronize()
            start = time.perf_counter()
            for chosen in torch.randperm(len(images), device=settings.device).split(batch_size)[:count]:
                optimizer.zero_grad()
                inputs = images.index_select(0, chosen).float().div(255)
                F.cross_entropy(compiled(inputs), labels.index_select(0, chosen)).backward()
                update()
            settings.synchronize()
            times.append(time.perf_counter() - start)
        return {"seconds": round(min(times[1:]), 4), "first": round(times[0], 2), "peak_mb": settings.peak_mb()}

    for batch_size in BATCH_SIZES[:1]:
        yield check(f'torch.compile(mode="reduce-overhead"), batch {batch_size}', partial(run, batch_size))


# ------------------------------------------------------------------------------------------------------- of a stack


def stacks(settings: Settings) -> Iterator[Row]:
    """Several networks at once compared with one; the aim is under twice its time."""
    yield check("a stack computes what its networks do", partial(_compare_stack, settings))
    times: dict[int, float] = {}

    def run(count: int) -> Row:
        made = [_make_network(settings, seed) for seed in range(count)]
        networks, optimizers = [network for network, _ in made], [optimizer for _, optimizer in made]
        few = replace_images(settings, min(settings.images, 12_800))
        row = _time(few, GraphedSteps(Stack(networks, optimizers)), 128)
        times[count] = row["seconds"]
        if count > 1 and 1 in times:
            row["times_one"] = round(times[count] / times[1], 2)
            row["aim_under_2"] = row["times_one"] < 2
        return {**row, "images": few.images}

    for count in (1, settings.networks):
        yield check(f"a stack of {count}, batch 128", partial(run, count))


def _compare_stack(settings: Settings) -> Row:
    images, labels = _make_images(settings)
    made = [[_make_network(settings, seed, EXACT) for seed in range(3)] for _ in range(2)]
    stack = GraphedSteps(Stack([network for network, _ in made[0]], [optimizer for _, optimizer in made[0]]))
    torch.manual_seed(5)
    _train_epoch(stack, images[:1_280], labels[:1_280], 64, EXACT)
    stack.close()
    for network, optimizer in made[1]:
        torch.manual_seed(5)
        alone = GraphedSteps(CompiledStep(network, optimizer), warm_up=NEVER)
        _train_epoch(alone, images[:1_280], labels[:1_280], 64, EXACT)
        alone.close()
    pairs = zip(*([p for network, _ in half for p in network.parameters()] for half in made), strict=True)
    greatest = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    expect(greatest < 1e-9, f"parameters differ by {greatest:.1e}")
    return {"greatest_difference": f"{greatest:.1e}"}
