"""Trainings by MuonAdamW, whose groups of parameters differ, with all that acts on an optimizer."""

import csv
import functools
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from lightning.pytorch import Trainer

from cifar_lightning import CIFAR10DataModule, MLPClassifier, MuonAdamW
from cifar_lightning.optim import schedules
from cifar_lightning.optim.schedule import Schedule

MUON = [*SMALL, "--model.hidden_sizes=2x16", "--data.batch_size=40", "--trainer.max_epochs=2"]
MUON += ["--trainer.accelerator=cpu", "--model.optimizer=MuonAdamW", "--model.lr=0.003"]

pytestmark = [pytest.mark.usefixtures("undrawn", "uncompiled"), pytest.mark.filterwarnings("ignore")]


def newest(name):
    return max(Path().rglob(name), key=lambda path: path.stat().st_mtime_ns)


def column(name):
    with newest("metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


OPTIONS = {
    "plain": [],
    "compiled": ["--execution.compile=always", "--execution.steps=3"],
    "range test": ["--trainer.callbacks+=LRFinder"],
    "accumulated": ["--trainer.accumulate_grad_batches=2"],
    "clipped by norm": ["--trainer.gradient_clip_val=0.1"],
    "clipped by value": ["--trainer.gradient_clip_val=0.01", "--trainer.gradient_clip_algorithm=value"],
    "averaged": ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"],
    "max norm": ["--model.max_norm=0.5"],
    "residual": ["--model.block=residual", "--model.normalization=batch"],
    "bottleneck": ["--model.block=inverted_bottleneck", "--model.normalization=layer"],
    "one layer": ["--model.hidden_sizes=1x16"],
    "cutmix": ["--model.cutmix=1.0"],
    "half": ["--trainer.precision=bf16-mixed"],
    "float32": ["--model.optimizer.precision=float32"],
}


@pytest.mark.parametrize("flags", OPTIONS.values(), ids=OPTIONS)
def test_it_learns_with(run, flags):
    run("fit", *MUON, *flags)
    losses = column("train_loss")
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert math.isfinite(column("val_loss")[-1])
    stored = MLPClassifier.load_from_checkpoint(newest("last.ckpt"), weights_only=True)
    assert stored.hparams["optimizer"]["class_path"] == "cifar_lightning.MuonAdamW"
    if "--model.max_norm=0.5" in flags:
        assert all(layer.linear.weight.norm(dim=1).max() <= 0.5 + 1e-6 for layer in stored.network.hidden)


def test_clipping_bounds_all_groups_together():
    class Norms(MLPClassifier):
        def on_before_zero_grad(self, optimizer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if gradients:
                norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    norms: list[float] = []
    module = Norms(hidden_sizes="2x16", optimizer="MuonAdamW")
    fit(module, gradient_clip_val=0.05)
    assert len(norms) == 3
    assert norms == pytest.approx([0.05] * len(norms), rel=1e-3)


def fit(module, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **options)
    trainer.fit(module, CIFAR10DataModule(source="synthetic", synthetic_size=200, val_size=40, batch_size=40))
    return trainer


CLASSES = [cls for cls in vars(schedules).values() if isinstance(cls, type) and issubclass(cls, Schedule)]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not Schedule], ids=lambda cls: cls.__name__)
def test_all_groups_have_the_schedules_rate(cls):
    schedule = cls()
    rates = []
    for make in (MuonAdamW, torch.optim.SGD):
        parameters = MLPClassifier(hidden_sizes="2x4").network.parameters()
        optimizer = make(parameters, lr=0.1)
        scheduler = schedule.build(optimizer, 10)
        rates.append([])
        for _ in range(10):
            optimizer.step()
            rate = {group["lr"] for group in optimizer.param_groups}
            assert len(rate) == 1
            rates[-1] += rate
            scheduler.step(*([1.0] if schedule.monitor else []))
    assert rates[0] == pytest.approx(rates[1])


def test_reused_layers_stay_as_they_are_while_they_are_frozen(run):
    run("fit", *MUON)
    teacher = newest("last.ckpt")
    reuse = [f"--pretrained.checkpoint={teacher}", "--pretrained.layers=1", "--trainer.callbacks+=FreezePretrained"]
    run("fit", *MUON, *reuse, "--trainer.callbacks.epochs=2")
    old, new = (torch.load(path, weights_only=True)["state_dict"] for path in (teacher, newest("last.ckpt")))
    changed = {name for name in old if name.startswith("network.") and not torch.equal(old[name], new[name])}
    assert {name for name in old if name.endswith("weight")} - changed == {"network.hidden.0.linear.weight"}


def test_a_teacher(run):
    run("fit", *MUON)
    teacher = newest("last.ckpt")
    taught = ["--trainer.callbacks+=Distillation", f"--trainer.callbacks.teachers=[{teacher}]"]
    run("fit", *MUON, *taught, "--model.cutmix=1.0", "--trainer.max_epochs=20")
    losses = column("train_loss")  # which vary with CutMix's boxes
    assert sum(losses[10:]) / 10 < 0.9 * sum(losses[:3]) / 3


@pytest.mark.parametrize("command", ["find-lr", "signals", "plot-schedule"])
def test_commands_that_need_an_optimizer(run, command):
    from cifar_lightning.__main__ import run as run_command

    run_command([command, *MUON, "--model.schedule=OneCycle"])
    assert newest("*.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("optimizer", "changed"),
    [
        ("MuonAdamW", {}),
        (MuonAdamW, {}),
        ("cifar_lightning.optim.muon.MuonAdamW", {}),
        (functools.partial(MuonAdamW, weight_decay=0.2), {"weight_decay": 0.2}),
        (lambda parameters, lr: MuonAdamW(parameters, lr=lr, momentum=0.8), {"momentum": 0.8}),
        ({"class_path": "MuonAdamW", "init_args": {"betas": [0.8, 0.9]}}, {"betas": [0.8, 0.9]}),
    ],
    ids=["name", "class", "path", "partial", "function", "primitives"],
)
def test_in_a_program(tmp_path, optimizer, changed):
    module = MLPClassifier(hidden_sizes="2x16", optimizer=optimizer)
    fit(module).save_checkpoint(tmp_path / "x.ckpt")
    stored = MLPClassifier.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).hparams["optimizer"]
    defaults = {"weight_decay": 0.1, "momentum": 0.95, "ns_steps": 5, "precision": "bfloat16", "betas": [0.9, 0.99]}
    assert stored == {"class_path": "cifar_lightning.MuonAdamW", "init_args": defaults | {"eps": 1e-8} | changed}
    groups = module.trainer.optimizers[0].param_groups
    assert [group["orthogonalize"] for group in groups] == [True, False, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.optimizer=MuonAdam"], "did you mean 'MuonAdamW'"),
        (["--model.optimizer=muonadamw"], "did you mean 'MuonAdamW'"),
        (["--model.optimizer=Muon"], "MuonAdamW updates those with AdamW"),
        (["--model.optimizer.weight_deca=0.1"], "did you mean 'weight_decay'"),
        (["--model.optimizer.orthogonalize=true"], "unknown argument of MuonAdamW"),
        (["--model.optimizer.precision=bfloat"], "did you mean 'bfloat16'"),
        (["--model.optimizer.momentum=1.5"], "momentum must be in [0, 1), got 1.5"),
        (["--model.optimizer.lr=0.1"], "lr must be set as the model's lr (--model.lr) only"),
    ],
)
def test_mistakes(fail, flags, message):
    assert message in fail("fit", *MUON, *flags)


def test_the_help_lists_it(capsys):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    start = text.index("--model.optimizer OPTIMIZER")
    described = text[start : text.index("--model.schedule.help", start)]
    assert "MuonAdamW, an optimizer of `torch.optim`, or the import path" in described
    assert "cifar_lightning.MuonAdamW" in described
    assert "joined" not in described
