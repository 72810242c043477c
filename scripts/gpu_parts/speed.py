"""Epoch times of our fit and of other systems, and the time of the kernel launches alone."""

import os
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from cifar_lightning import DeepMLP
from gpu_parts.common import LeftOut, Row, Settings, check

SCRIPTS = Path(__file__).resolve().parent.parent
BATCH_SIZES = (128, 32, 512)
#: Files between a place in the code and its warning.
NOT_THE_PLACE = (__file__, "/warnings.py")
TORCH = str(Path(torch.__file__).parent)
#: Number of consecutive launches used to time one.
LAUNCHES = 5_000


class Synchronizations:
    """Counts calls that wait for the GPU, by place in the code."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def start(self) -> None:
        """Start counting."""
        self._show = warnings.showwarning
        warnings.simplefilter("always")
        warnings.showwarning = self._count
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        """Stop counting."""
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = self._show

    def _count(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if "synchroniz" in str(message):
            frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith(NOT_THE_PLACE)]
            frames = [frame for frame in frames if not frame.filename.startswith(TORCH)]
            self.places[f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"] += 1


class Clock(ProgressBar):
    """Times epochs, and counts synchronizations in the last one. Progress bars allow several steps at once."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings, self.synchronizations = settings, Synchronizations()
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Record the time, once the previous epoch has finished on the device."""
        self._settings.synchronize()
        self.times.append(time.perf_counter())
        if trainer.current_epoch + 1 == trainer.max_epochs and self._settings.device == "cuda":
            self.synchronizations.start()

    def on_train_end(self, *args: Any) -> None:
        """Stop counting."""
        if self._settings.device == "cuda":
            self.synchronizations.stop()

    @property
    def seconds(self) -> float:
        """Seconds of the fastest epoch, except for the first and the last."""
        return min(after - before for before, after in zip(self.times[1:], self.times[2:], strict=False))


def fits(settings: Settings) -> Iterator[Row]:
    """Our fit, with and without CUDA graphs; at the first batch size with TF32, and with augmentation too."""
    for batch_size in BATCH_SIZES:
        for compile, what in (("always", "CUDA graphs"), ("never", "plain")):
            yield check(f"our fit, {what}, batch {batch_size}", partial(_fit, settings, compile, batch_size))
    first = partial(_fit, settings, "always", BATCH_SIZES[0])
    yield check(f"our fit, CUDA graphs, TF32, batch {BATCH_SIZES[0]}", partial(first, "high"))
    yield check(f"our fit, CUDA graphs, flip and shift, batch {BATCH_SIZES[0]}", partial(first, flip=True, shift=4))


def _fit(settings: Settings, compile: Any, batch_size: int, precision: Any = None, **augmentation: Any) -> Row:
    clock = Clock(settings)
    module = settings.make_module(compile, precision, hidden_sizes=settings.hidden_sizes, lr=5e-5)
    trainer = settings.make_trainer(
        max_epochs=settings.epochs + 2, callbacks=[clock], enable_progress_bar=True, limit_val_batches=0
    )
    settings.reset_peak()
    trainer.fit(module, settings.make_data(settings.images, batch_size, **augmentation))
    row: Row = {"seconds": round(clock.seconds, 4), "peak_mb": settings.peak_mb()}
    if settings.device == "cuda":
        places = clock.synchronizations.places
        row |= {"synchronizations": places.total(), "places": dict(places.most_common(5))}
    return row


def others(settings: Settings) -> Iterator[Row]:
    """The other systems of scripts/benchmark, on this device."""
    loader = SourceFileLoader("benchmark", str(SCRIPTS / "benchmark"))
    benchmark = module_from_spec(spec_from_loader("benchmark", loader))
    loader.exec_module(benchmark)
    benchmark.IMAGES, benchmark.DEVICE = settings.images, settings.device
    os.environ["BENCHMARK_START"] = str(time.time())

    def run(system: str, batch_size: int) -> Row:
        if system == "jax scan" and not find_spec("jax"):
            raise LeftOut("jax is not installed")
        benchmark.WORKS["nadam"] = (batch_size, [])
        watch = benchmark.Stopwatch()
        settings.reset_peak()
        (benchmark.OURS | benchmark.OTHERS)[system]("nadam", settings.epochs + 1, watch)
        row: Row = {"seconds": round(min(watch.epochs[1:]), 4)}
        if system == "jax scan":
            row["jax_backend"] = __import__("jax").default_backend()
        else:
            row["peak_mb"] = settings.peak_mb()
        return row

    for batch_size in BATCH_SIZES:
        for system in ("pytorch loop", "stock lightning", "jax scan"):
            yield check(f"{system}, batch {batch_size}", partial(run, system, batch_size))


def floors(settings: Settings) -> Iterator[Row]:
    """Time to launch a step's kernels, individually and in a graph: a lower bound for an epoch."""
    if settings.device == "cpu":
        yield check("the launch floor", partial(_refuse, "a CPU launches nothing"))
        return
    x = torch.zeros(100, device="cuda")
    eager = _seconds(settings, lambda: [x.add_(1) for _ in range(LAUNCHES)]) / LAUNCHES
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            x.add_(1)
    replayed = _seconds(settings, graph.replay) / LAUNCHES
    yield {
        "what": "a launch",
        "ok": True,
        "microseconds": round(eager * 1e6, 2),
        "in_a_graph": round(replayed * 1e6, 2),
    }
    for batch_size in BATCH_SIZES:
        yield check(f"the launch floor, batch {batch_size}", partial(_floor, settings, batch_size, eager, replayed))


def _refuse(why: str) -> Row:
    raise LeftOut(why)


def _seconds(settings: Settings, function: Any) -> float:
    """Seconds of the fastest of five calls, after one for warm-up."""
    times = []
    for _ in range(6):
        settings.synchronize()
        start = time.perf_counter()
        function()
        settings.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _floor(settings: Settings, batch_size: int, eager: float, replayed: float) -> Row:
    network = DeepMLP(hidden_sizes=settings.hidden_sizes).to(settings.device)
    optimizer = torch.optim.NAdam(network.parameters(), lr=5e-5)
    images, labels = torch.randn(batch_size, 3072, device="cuda"), torch.arange(batch_size, device="cuda") % 10

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as seen:
        step()
        settings.synchronize()
    kernels = sum(event.count for event in seen.key_averages() if "LaunchKernel" in event.key)
    count = kernels * (settings.images // batch_size)
    return {"kernels_a_step": kernels, "seconds": round(count * eager, 4), "in_graphs": round(count * replayed, 4)}
