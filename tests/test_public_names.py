"""What the package offers: each name has an example that runs, and types that a user's strict mypy accepts."""

import doctest
import os
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import ROOT

import cifar_lightning

PROGRAM = """
from torch import Tensor, nn, optim
from cifar_lightning import (
    AlphaDropout, DeepMLP, ImageNetwork, LRFinder, LRSweep, MCPrediction, MLPClassifier, OneCycle, Standardize,
    alpha_dropout, compute_statistics, find_lr, initialize_, load_network, mc_predict,
)

def use(images: Tensor, labels: Tensor) -> Tensor:
    standardize = Standardize()
    standardize.set_statistics(compute_statistics(images, "channel"))
    network = DeepMLP(hidden_sizes=[100, 50], activation="relu", init="he_normal", dropout="alpha")
    initialize_(network.output.weight, "glorot_uniform")
    model = nn.Sequential(standardize, network, AlphaDropout(0.1))
    optimizer = optim.SGD(model.parameters(), 0.1)
    OneCycle(anneal="cos").build(optimizer, 100).step()
    sweep: LRSweep = find_lr(model, optimizer, nn.functional.cross_entropy, [(images, labels)])
    rate: float | None = sweep.suggest()
    prediction: MCPrediction = mc_predict(model, images, samples=int(rate or 3))
    again: DeepMLP = DeepMLP.from_pretrained("folder")
    loaded: ImageNetwork = load_network("net.safetensors")
    names: tuple[str, ...] = loaded.classes
    LRFinder(mode="linear", rule="steep")
    print(names, MLPClassifier(lr=0.1).predict_proba(images), again(images))
    return alpha_dropout(prediction.mean, 0.1, training=True)
"""


@pytest.mark.parametrize("name", cifar_lightning.__all__)
def test_each_public_name_has_an_example_that_runs(name):
    if name == "load_network":
        pytest.importorskip("safetensors")
    public = getattr(cifar_lightning, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(public, name)
    assert found.examples, f"{name} has no example"
    torch.manual_seed(0)
    said = []
    with warnings.catch_warnings(action="ignore"):
        doctest.DocTestRunner(verbose=False).run(found, out=said.append)
    assert not said, "".join(said)


@pytest.mark.slow  # mypy reads torch anew
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "Success"),
        ('AlphaDropout(p="half")', "incompatible type"),
        ('OneCycle(anneal="linaer")', "incompatible type"),
        ('load_network("a").classes = 3', "Incompatible types in assignment"),
    ],
)
def test_a_users_program_under_strict_mypy(tmp_path, wrong, said):
    (tmp_path / "program.py").write_text(f"{PROGRAM}\n{wrong}\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path.parent / "mypy", "program.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("program.py") and ": error" in line]
    assert len(errors) == bool(wrong), done.stdout
    assert said in done.stdout or not wrong
