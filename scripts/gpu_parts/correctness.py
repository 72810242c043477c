"""Checks that the GPU computes the same as the CPU."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_lightning import AlphaDropout, DeepMLP, LRFinder, mc_predict
from cifar_lightning.cli.devices import check_devices, describe_devices
from cifar_lightning.data.augment import Augmentation, Variants
from cifar_lightning.data.batches import BatchOrder, InMemoryImages
from cifar_lightning.nn.layers import ACTIVATIONS
from cifar_lightning.training.resume import ExactResume
from gpu_parts.common import LeftOut, Row, Settings, check, expect

ROOT = Path(__file__).resolve().parent.parent.parent
#: The tests that depend on the device, or must not.
TESTS = ("nn/test_*.py", "compiled/test_*.py", "optim/test_*.py", "data/test_augment.py", "analysis/test_mc_dropout.py")
#: Largest allowed difference between a step on the CPU and on the GPU, relative or absolute.
TOLERANCE = 1e-5


# ----------------------------------------------------------------------------------------------------------- one step


def steps(settings: Settings) -> Iterator[Row]:
    """One step of each kind of layer on both devices, from the same weights."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for activation in ACTIVATIONS:
        yield check(f"a step with {activation}", partial(_compare_step, settings, activation=activation))
    for normalization in ("batch", "layer"):
        for position in ("before_activation", "after_activation"):
            options = {"normalization": normalization, "norm_position": position, "norm_input": True}
            what = f"a step with {normalization} norm {position.replace('_', ' ')}"
            yield check(what, partial(_compare_step, settings, activation="elu", **options))
    for dropout in ("standard", "alpha"):
        options = {"dropout": dropout, "dropout_position": "input_and_all"}
        yield check(f"a step with {dropout} dropout in eval mode", partial(_compare_step, settings, **options))
    options = {"l1": 1e-4, "l2": 1e-4, "max_norm": 0.9, "activation": "elu"}
    yield check("a step with l1, l2 and max_norm", partial(_compare_step, settings, **options))


def _compare_step(settings: Settings, **options: Any) -> Row:
    generator = torch.Generator().manual_seed(2)
    images, labels = torch.randn(64, 3072, generator=generator), torch.arange(64) % 10
    results = []
    for device in ("cpu", settings.device):
        torch.manual_seed(1)
        network = DeepMLP(hidden_sizes="5x100", **options).to(device)
        if "dropout" in options:
            network.eval()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        logits = network(images.to(device))
        loss = F.cross_entropy(logits, labels.to(device)) + network.penalty()
        loss.backward()
        optimizer.step()
        network.constrain_()
        state = {f"{name} after the step": value for name, value in network.state_dict().items()}
        results.append({"the loss": loss, "the logits": logits, **state})
    ours, theirs = results
    greatest = 0.0
    for name, value in ours.items():
        difference = (theirs[name].cpu().double() - value.double()).abs().div(value.abs().clamp(min=1)).max().item()
        expect(difference <= TOLERANCE, f"{name} differs by {difference:.1e}")
        greatest = max(greatest, difference)
    return {"greatest_difference": f"{greatest:.1e}"}


def moments(settings: Settings) -> Iterator[Row]:
    """AlphaDropout keeps mean 0 and variance 1, and drops at its rate."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for p in (0.05, 0.5):
            yield check(f"moments of AlphaDropout({p}) in {str(dtype)[6:]}", partial(_moments, settings, dtype, p))


def _moments(settings: Settings, dtype: torch.dtype, p: float) -> Row:
    torch.manual_seed(1)
    x = torch.randn(1_000_000, device=settings.device).to(dtype)
    y = AlphaDropout(p).train()(x)
    values, counts = y.unique(return_counts=True)
    mean, variance = y.double().mean().item(), y.double().var().item()
    share = (y == values[counts.argmax()]).double().mean().item()
    # Five standard errors, plus the rounding of the dtype.
    slack = 5e-3 + torch.finfo(dtype).eps
    expect(y.dtype == dtype, f"the result is {y.dtype}")
    expect(abs(mean) < slack and abs(variance - 1) < 2 * slack, f"mean {mean:.4f}, variance {variance:.4f}")
    expect(abs(share - p) < slack, f"a share of {share:.4f} is dropped")
    return {"mean": round(mean, 5), "variance": round(variance, 5), "dropped": round(share, 5)}


# ---------------------------------------------------------------------------------------------------------- trainings


def fits(settings: Settings) -> Iterator[Row]:
    """Training runs with each option that involves the device."""
    accelerator, devices = ("gpu", [0]) if settings.device == "cuda" else ("cpu", 1)
    kinds: dict[str, Row] = {
        f"accelerator {accelerator}": {"accelerator": accelerator},
        f"devices {devices}": {"accelerator": accelerator, "devices": devices},
        "accelerator auto": {"accelerator": "auto", "devices": "auto" if settings.device == "cuda" else 1},
        "precision bf16-mixed": {"precision": "bf16-mixed"},
        "precision 16-mixed": {"precision": "16-mixed"},
        "gradient_clip_val 1": {"gradient_clip_val": 1.0},
    }
    for what, flags in kinds.items():
        yield check(f"fit, {what}", partial(_fit, settings, flags, "never"))
    for dropout in ("none", "alpha"):
        yield check(f"fit by CUDA graphs, dropout {dropout}", partial(_fit, settings, {}, "always", dropout=dropout))


def _fit(settings: Settings, flags: Row, compile: Any, **options: Any) -> Row:
    if flags.get("precision") == "16-mixed" and settings.device == "cpu":
        raise LeftOut("Lightning supports it on GPUs only")
    module, trainer = settings.make_module(compile, **options), settings.make_trainer(max_epochs=2, **flags)
    if settings.device == "cuda":
        expect(trainer.strategy.root_device.type == "cuda", f"it runs on {trainer.strategy.root_device}")
    trainer.fit(module, settings.make_data())
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    expect(metrics["train_loss"] < 2.3, f"the training loss is {metrics['train_loss']}, no better than chance")
    return {name: round(metrics[name], 4) for name in ("train_loss", "val_loss", "val_accuracy")}


def resumes(settings: Settings) -> Iterator[Row]:
    """Training that is stopped within an epoch resumes bit for bit."""
    for compile, what in (("never", "plain steps"), ("always", "CUDA graphs")):
        yield check(f"resume within an epoch, {what}", partial(_resume, settings, compile))


def _resume(settings: Settings, compile: Any) -> Row:
    states = []
    path = settings.folder / f"resume_{compile}.ckpt"
    for stop in (None, 40):  # with 32 steps per epoch
        module = settings.make_module(compile, dropout="alpha", dropout_position="all")
        flags: Row = {"deterministic": True, "max_epochs": 3}
        if stop:
            first = settings.make_trainer(**flags | {"max_epochs": -1, "max_steps": stop}, callbacks=[ExactResume()])
            first.fit(module, settings.make_data())
            first.save_checkpoint(path)
            module = settings.make_module(compile, dropout="alpha", dropout_position="all")
        trainer = settings.make_trainer(**flags, callbacks=[ExactResume()])
        trainer.fit(module, settings.make_data(), ckpt_path=path if stop else None)
        expect(trainer.global_step == 96, f"{trainer.global_step} steps instead of 96")
        states.append({name: value.cpu() for name, value in module.state_dict().items()})
    torch.use_deterministic_algorithms(False)
    other = [name for name, value in states[0].items() if not torch.equal(states[1][name], value)]
    expect(not other, f"{len(other)} tensors differ, {other[:1]} first")
    return {"bitwise": True}


def variants(settings: Settings) -> Iterator[Row]:
    """Augmented images that the device makes are those of the CPU, and nothing waits for them."""
    yield check("augmented images", partial(_compare_variants, settings))


def _compare_variants(settings: Settings) -> Row:
    images = torch.randint(256, (2_000, 3, 32, 32), dtype=torch.uint8)
    order = BatchOrder(range(len(images)), 64, True, seed=1)
    here, there = (
        InMemoryImages(images, torch.arange(len(images)), device=device)
        for device in (None, torch.device(settings.device))
    )
    for split in (here, there):
        split.variants = Variants(images, Augmentation(flip=True, shift=4), order)
    there[torch.arange(1)]  # moves the pixels
    for epoch in range(2):
        order.set_epoch(epoch)
        for chosen in order:
            if settings.device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                made = there[chosen]
            finally:
                if settings.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            same = all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(made, here[chosen], strict=True))
            expect(same, "they differ from the CPU's")
    return {"bitwise": True}


def finders(settings: Settings) -> Iterator[Row]:
    """The learning-rate finder."""

    def sweep() -> Row:
        finder = LRFinder(min_lr=1e-5, max_lr=10.0, num_steps=100)
        trainer = settings.make_trainer(max_epochs=1, callbacks=[finder])
        module = settings.make_module(lr=1e-4)
        trainer.fit(module, settings.make_data())
        expect(module.hparams["lr"] == finder.found["found"], f"it trains at {module.hparams['lr']}")
        expect(
            trainer.optimizers[0].param_groups[0]["lr"] == finder.found["found"], "the optimizer has a different rate"
        )
        return {
            "lr": f"{finder.found['found']:.2e}",
            "train_loss": round(trainer.callback_metrics["train_loss"].item(), 4),
        }

    yield check("LRFinder", sweep)


# -------------------------------------------------------------------------------------------------------- predictions


def predictions(settings: Settings) -> Iterator[Row]:
    """Predictions and evaluations of a trained network, and its checkpoint."""
    module, data = settings.make_module(dropout="alpha", dropout_position="all"), settings.make_data()
    saver = ModelCheckpoint(settings.folder / "predictions", save_last=True)
    trainer = settings.make_trainer(max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(module, data)
    images = data.first_training_images(500)[0]

    def evaluate(name: str) -> Row:
        (metrics,) = getattr(settings.make_trainer(), name)(module, data, verbose=False)
        return {key: round(value, 4) for key, value in metrics.items()}

    def predict() -> Row:
        batches = settings.make_trainer().predict(module, data)
        probabilities = torch.cat(batches).cpu()
        expect(torch.allclose(probabilities.sum(-1), torch.ones(len(probabilities))), "probabilities do not sum to 1")
        return {"images": len(probabilities)}

    def load_elsewhere() -> Row:
        on_device = module.to(settings.device).eval().predict_proba(images).cpu()
        on_cpu = type(module).load_from_checkpoint(saver.last_model_path, map_location="cpu").predict_proba(images)
        difference = (on_device - on_cpu).abs().max().item()
        expect(difference < TOLERANCE, f"probabilities differ by {difference:.1e}")
        return {"greatest_difference": f"{difference:.1e}"}

    def sample() -> Row:
        module.to(settings.device)
        moved = images.to(settings.device)
        first, again = (mc_predict(module, moved, samples=200, seed=3) for _ in range(2))
        expect(torch.equal(first.mean, again.mean), "the same seed gives different probabilities")
        on_cpu = mc_predict(module.cpu(), images, samples=200, seed=3)
        difference = (first.mean.cpu() - on_cpu.mean).abs().mean().item()
        # (Other masks there: the mean of 200 samples has a standard error of 0.035 at most.)
        expect(difference < 0.035, f"mean probabilities differ by {difference:.3f} on average")
        return {"mean_std": round(first.std.mean().item(), 4), "mean_difference_to_cpu": round(difference, 5)}

    for name in ("validate", "test"):
        yield check(name, partial(evaluate, name))
    yield check("predict", predict)
    yield check("the checkpoint on the CPU", load_elsewhere)
    yield check("Monte-Carlo dropout", sample)


# ------------------------------------------------------------------------------------------- the command and the tests


def devices(settings: Settings) -> Iterator[Row]:
    """What is said of devices that are not there."""

    def refuse() -> Row:
        try:
            check_devices("gpu" if settings.device == "cuda" else "cpu", [99])
        except ValueError as error:
            expect("got [99]" in str(error) and describe_devices() in str(error), str(error))
            return {"devices": describe_devices()}
        raise AssertionError("devices [99] are taken")

    yield check("an absent device's message", refuse)


def command(settings: Settings) -> Iterator[Row]:
    """The command line, if its parser is installed."""
    accelerator = ["--trainer.accelerator=gpu", "--trainer.devices=[0]"] if settings.device == "cuda" else []
    small = ["--data.source=synthetic", "--data.synthetic_size=3000", "--data.val_size=500", "--trainer.max_epochs=1"]

    def fit(*flags: str) -> Row:
        if not find_spec("jsonargparse"):
            raise LeftOut("jsonargparse is not installed")
        root = f"--trainer.default_root_dir={settings.folder}"
        done = subprocess.run(
            [sys.executable, "-m", "cifar_lightning", "fit", *small, *accelerator, root, *flags],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        print(done.stdout, done.stderr)
        expect(done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1])
        (line, *_) = [line for line in done.stdout.splitlines() if line.startswith("Training steps")]
        return {"said": line}

    yield check("cifar-lightning fit", fit)
    if settings.device == "cuda":
        yield check("cifar-lightning fit --execution.compile never", partial(fit, "--execution.compile=never"))
        yield check(
            "cifar-lightning fit --trainer.precision bf16-mixed", partial(fit, "--trainer.precision=bf16-mixed")
        )


def tests(settings: Settings) -> Iterator[Row]:
    """The tests that depend on the device."""

    def run() -> Row:
        files = [file for pattern in TESTS for file in sorted((ROOT / "tests").glob(pattern)) if _can_run(file)]
        options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not real"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *map(str, files)],
            capture_output=True, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TEST_DEVICE": settings.device},
        )  # fmt: skip
        print(done.stdout, done.stderr)
        counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
        expect(done.returncode == 0, f"{counts}; see the log")
        return {"files": len(files), **counts}

    yield check(f"pytest with TEST_DEVICE={settings.device}", run)


def _can_run(file: Path) -> bool:
    """Whether a test file's imports are installed; tests of the command line need its parser."""
    needs = {"scipy": "scipy", "sklearn": "sklearn", "hypothesis": "hypothesis", "cifar_lightning.cli": "jsonargparse"}
    imports = re.findall(r"^(?:from|import) (\S+)", file.read_text(), re.MULTILINE)
    return all(find_spec(module) for name, module in needs.items() if any(each.startswith(name) for each in imports))
