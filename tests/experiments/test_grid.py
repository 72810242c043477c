import re
from pathlib import Path

import pytest
from conftest import ROOT

from cifar_lightning.experiments.axis import Range
from cifar_lightning.experiments.check import check
from cifar_lightning.experiments.grid import Point, read_grid


def names(text):
    return [point.name for point in read_grid(text).points()]


def test_points_are_all_combinations_the_last_axis_fastest():
    points = read_grid("{model.activation: [relu, selu], model.lr: [1e-3, 3e-3]}").points()
    assert points == [
        Point("activation=relu,lr=0.001", {"model.activation": "relu", "model.lr": 0.001}),
        Point("activation=relu,lr=0.003", {"model.activation": "relu", "model.lr": 0.003}),
        Point("activation=selu,lr=0.001", {"model.activation": "selu", "model.lr": 0.001}),
        Point("activation=selu,lr=0.003", {"model.activation": "selu", "model.lr": 0.003}),
    ]
    assert points[0].flags == ["--model.activation=relu", "--model.lr=0.001"]


def test_a_file_is_read_as_its_text():
    Path("grid.yaml").write_text("model.lr: [1e-3]  # a rate\n")
    assert read_grid("grid.yaml") == read_grid("{model.lr: [0.001]}")


def test_settings_have_a_name_and_go_together():
    grid = read_grid("{optimizer: {sgd: {model.optimizer: SGD, model.lr: 0.03}, base: {}}, data.batch_size: [32]}")
    assert grid.points() == [
        Point("sgd", {"model.optimizer": "SGD", "model.lr": 0.03, "data.batch_size": 32}),
        Point("base", {"data.batch_size": 32}),
    ]
    assert grid.options == ["model.optimizer", "model.lr", "data.batch_size"]


def test_what_does_not_vary_is_in_no_name():
    assert names("{model.lr: [0.1], model.activation: [relu, selu]}") == ["activation=relu", "activation=selu"]
    assert names("{model.lr: [0.1], model.activation: [relu]}") == ["lr=0.1,activation=relu"]


def test_templates_take_variables():
    points = read_grid("{n: [1, 20], w: [100], model.hidden_sizes: '{n}x{w}'}").points()
    assert points == [
        Point("n=1", {"model.hidden_sizes": "1x100"}),
        Point("n=20", {"model.hidden_sizes": "20x100"}),
    ]


def test_any_value_becomes_a_flag():
    grid = read_grid(
        "model.norm_input: [true]\nmodel.optimizer: [{class_path: SGD, init_args: {momentum: 0.9}}]\n"
        "trainer.gradient_clip_val: [null]\ndata.classes: [[cat, dog]]\nseed_everything: [3]"
    )
    (point,) = grid.points()
    assert point.flags == [
        "--model.norm_input=true",
        '--model.optimizer={"class_path": "SGD", "init_args": {"momentum": 0.9}}',
        "--trainer.gradient_clip_val=null",
        '--data.classes=["cat", "dog"]',
        "--seed_everything=3",
    ]
    assert point.name == (
        "norm_input=true,optimizer=SGD-momentum=0.9,gradient_clip_val=null,classes=cat-dog,seed_everything=3"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a: {../x: {}, .: {}, '': {}}}", ["x", "point", "point_2"]),
        ("{a: {Relu: {}, relu: {}}}", ["Relu", "relu_2"]),  # one folder, where capitals don't count
        ("{a: {relu_2: {}, relu: {}, Relu: {}}}", ["relu_2", "relu", "Relu_3"]),
        ("{model.x.lr: [1], model.y.lr: [2]}", ["model.x.lr=1,model.y.lr=2"]),
        ("{model.hidden_sizes: ['100,50', '100 50']}", ["hidden_sizes=100,50", "hidden_sizes=100_50"]),
    ],
)
def test_names_are_those_of_folders(text, expected):
    assert names(text) == expected


def test_long_names_are_cut_and_still_differ():
    found = names("{data.images: ['" + "x" * 300 + "a', '" + "x" * 300 + "b']}")
    assert len(set(found)) == 2
    for name in found:
        assert len(name) <= 100
        Path(name).mkdir()


def test_a_range_is_for_a_search_only():
    grid = read_grid("{model.lr: {type: float, low: 1e-5, high: 1e-3, log: true}, model.activation: [relu]}")
    assert grid.axes["model.lr"] == Range("float", 1e-5, 1e-3, log=True)
    with pytest.raises(ValueError, match="model.lr is a range, which only a search can sample: expected a list"):
        grid.points()


def test_probes_reach_both_ends_and_every_choice():
    grid = read_grid(
        "model.lr: {type: float, low: 0.1, high: 1}\nmodel.activation: [relu, selu, elu]\no: {a: {}, b: {}}"
    )
    probes = list(grid.probes())
    assert {probe["model.lr"] for probe in probes} == {0.1, 1}
    assert [probe["model.activation"] for probe in probes] == ["relu", "selu", "elu"]
    assert {probe["o"] for probe in probes} == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [("activations", "chapter_11", 10), ("optimizers", "chapter_11", 8), ("ablation", "best/deep", 17)],
)
def test_the_shipped_grids_can_be_trained(name, config, count):
    grid = read_grid(str(ROOT / "configs" / "grids" / f"{name}.yaml"))
    assert len(grid.points()) == count
    assert [point.name for point in grid.points() if not point.name.isidentifier()] == []
    check([f"--config={ROOT}/configs/{config}.yaml"], grid, config)


@pytest.mark.parametrize(
    ("name", "config"),
    [("tuner", "tuner"), ("regularization", "best/deep"), ("regularization", "best/bottleneck")],
)
def test_the_shipped_spaces_can_be_searched(name, config):
    check([f"--config={ROOT}/configs/{config}.yaml"], read_grid(f"{ROOT}/configs/search/{name}.yaml"), config)


KNOWN = ["model.lr", "model.optimizer.class_path", "model.activation", "data.batch_size", "seed_everything"]


@pytest.mark.parametrize("name", ["model.lr", "model.optimizer", "model.optimizer.momentum", "seed_everything"])
def test_known_names(name):
    read_grid(f"{{{name}: [1]}}").check_names(KNOWN)
    read_grid(f"{{o: {{a: {{{name}: 1}}}}}}").check_names(KNOWN)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.lrr",
            "unknown option to vary: expected one of model.lr, .*got 'model.lrr' .did you mean 'model.lr'",
        ),
        ("mdel.lr", "expected one of model, data, trainer; got 'mdel.lr'"),
        ("data.batchsize", "did you mean 'data.batch_size'"),
    ],
)
def test_unknown_names(name, message):
    for text in (f"{{{name}: [1]}}", f"{{o: {{a: {{{name}: 1}}}}}}", f"{{n: [1], {name}: '{{n}}'}}"):
        with pytest.raises(ValueError, match=message):
            read_grid(text).check_names(KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to vary: expected a YAML file or entries such as {model.lr: [1e-3, 1e-2]}, got ''"),
        ("nowhere.yaml", "got 'nowhere.yaml'"),
        ("[1, 2]", "got '[1, 2]'"),
        (".", "got '.'"),
        ("{a: [1", "expected YAML, got"),
        ("model.lr: 0.1", "wrong entry model.lr: expected a list of values"),
        ("model.lr: {type: flot, low: 0, high: 1}", "wrong type of model.lr: expected int or float, got 'flot'"),
        ("model.lr: {type: float, low: 0, hihg: 1}", "did you mean 'high'"),
        ("model.lr: {type: float, low: 1, high: 0.1}", "expected low < high, got low 1, high 0.1"),
        ("model.lr: {type: float, low: 0, high: 1, log: true}", "expected low > 0 on a logarithmic scale"),
        ("model.lr: {type: float, low: a, high: 1}", "wrong low of model.lr: expected a number of type float"),
        ("model.lr: {type: float, low: 0, high: .inf}", "wrong high of model.lr"),
        ("model.lr: {type: float, low: 0}", "wrong high of model.lr: expected a number of type float, got None"),
        ("data.batch_size: {type: int, low: 1.5, high: 3}", "expected a number of type int, got 1.5"),
        ("data.batch_size: {type: int, low: true, high: 3}", "expected a number of type int, got True"),
        ("model.lr: {type: float, low: 1, high: 2, log: 10}", "wrong log of model.lr: expected true or false"),
        ("model.lr: {type: float, low: 1, high: 2, log: true, step: 1}", "on a linear scale"),
        ("data.batch_size: {type: int, low: 1, high: 3, step: 5}", "expected 0 < step <= high - low"),
        ("model.activation: []", "wrong choices of model.activation"),
        ("model.activation: [relu, relu]", "expected one or more distinct"),
        ("model.activation: &a [*a]", "model.activation"),
        ("model.activation: [!!set {a}]", "wrong choices of model.activation"),
        ("n: {type: int, low: 1, high: 3}", "n has no effect"),
        ("lr: [0.1]", "lr has no effect: expected an option with a dot, such as model.lr"),
        ("n: {type: int, low: 1, high: 3}\nmodel.hidden_sizes: '{m}x3'", "unknown variable in the template"),
        ("n: {type: int, low: 1, high: 3}\nmodel.hidden_sizes: '{n}x{3'", "wrong template of model.hidden_sizes"),
        ("o: {a: {lr: 0.1}}", "wrong settings a of o: expected options with a dot, such as model.lr: 0.1, got lr"),
        ("{model.lr: [1], o: {a: {model.lr: 2}}}", "model.lr may be varied by one entry only, got model.lr"),
        ("{n: [1], o: {a: {model.init: 2}}, model.init: '{n}'}", "model.init may be varied by one entry only"),
    ],
)  # fmt: skip
def test_a_wrong_grid_ends_in_one_message(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_grid(text)
