import re
from pathlib import Path

import pytest
from conftest import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_lightning.experiments.search.space import read_space


def read(text):
    Path("space.yaml").write_text(text)
    return read_space(Path("space.yaml"))


def test_distributions_and_flags():
    space = read(
        "n: {type: int, low: 1, high: 10}\n"
        "m: {type: int, low: 64, high: 256, step: 64}\n"
        "model.hidden_sizes: '{n}x{m}'\n"
        "model.lr: {type: float, low: 1e-5, high: 1e-3, log: true}\n"
        "model.activation: [relu, selu]\n"
        "model.norm_input: [true, false]\n"
        "model.optimizer.betas: [[0.9, 0.99], null]\n"
    )
    assert space.distributions == {
        "n": IntDistribution(1, 10),
        "m": IntDistribution(64, 256, step=64),
        "model.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "model.activation": CategoricalDistribution(["relu", "selu"]),
        "model.norm_input": CategoricalDistribution([True, False]),
        "model.optimizer.betas": CategoricalDistribution(["[0.9, 0.99]", "null"]),
    }
    point = {"n": 3, "m": 128, "model.lr": 1e-05, "model.activation": "selu", "model.norm_input": True}
    assert space.flags(point | {"model.optimizer.betas": "null"}) == [
        "--model.lr=1e-05",
        "--model.activation=selu",
        "--model.norm_input=true",
        "--model.optimizer.betas=null",
        "--model.hidden_sizes=3x128",
    ]


def test_probes_reach_both_ends_and_every_choice():
    space = read("model.lr: {type: float, low: 0.1, high: 1}\nmodel.activation: [relu, selu, elu]")
    probes = list(space.probes())
    assert {probe["model.lr"] for probe in probes} == {0.1, 1}
    assert [probe["model.activation"] for probe in probes] == ["relu", "selu", "elu"]


def test_the_shipped_space_is_the_notebooks():
    space = read_space(ROOT / "configs" / "search" / "tuner.yaml")
    assert space.distributions == {
        "n_hidden": IntDistribution(1, 10),
        "n_neurons": IntDistribution(64, 256),
        "model.lr": FloatDistribution(1e-5, 1e-3, log=True),
    }
    assert space.templates == {"model.hidden_sizes": "{n_hidden}x{n_neurons}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "received none"),
        ("model.lr: 0.1", "wrong entry model.lr: expected {type: float"),
        ("model.lr: {type: flot, low: 0, high: 1}", "wrong type of model.lr: expected int or float, received 'flot'"),
        ("model.lr: {type: float, low: 0, hihg: 1}", "did you mean 'high'"),
        ("model.lr: {type: float, low: 1, high: 0.1}", "expected low < high, received low 1, high 0.1"),
        ("model.lr: {type: float, low: 0, high: 1, log: true}", "expected low > 0 on a logarithmic scale"),
        ("model.lr: {type: float, low: a, high: 1}", "wrong low of model.lr: expected a number of type float"),
        ("model.lr: {type: float, low: 0, high: .inf}", "wrong high of model.lr"),
        ("model.lr: {type: float, low: 0}", "wrong high of model.lr: expected a number of type float, received None"),
        ("data.batch_size: {type: int, low: 1.5, high: 3}", "expected a number of type int, received 1.5"),
        ("data.batch_size: {type: int, low: true, high: 3}", "expected a number of type int, received True"),
        ("model.lr: {type: float, low: 1, high: 2, log: 10}", "wrong log of model.lr: expected true or false"),
        ("model.lr: {type: float, low: 1, high: 2, log: true, step: 1}", "on a linear scale"),
        ("data.batch_size: {type: int, low: 1, high: 3, step: 5}", "expected 0 < step <= high - low"),
        ("model.activation: []", "wrong choices of model.activation"),
        ("model.activation: [relu, relu]", "expected one or more, each once"),
        ("n: {type: int, low: 1, high: 3}", "n varies nothing"),
        ("n: {type: int, low: 1, high: 3}\nmodel.hidden_sizes: '{m}x3'", "unknown variable in the template"),
        ("n: {type: int, low: 1, high: 3}\nmodel.hidden_sizes: '{n}x{3'", "wrong template of model.hidden_sizes"),
    ],
)
def test_a_wrong_space_ends_in_one_message(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(text)


def test_no_space():
    with pytest.raises(ValueError, match="no search space: expected a YAML file, received 'nowhere.yaml'"):
        read_space(Path("nowhere.yaml"))
