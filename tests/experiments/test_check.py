from pathlib import Path

import pytest

from cifar_lightning.experiments.check import check, given_flags, name_of, one_device, refuse
from cifar_lightning.experiments.grid import read_grid

GRID = "{model.activation: [relu, selu, elu], o: {sgd: {model.optimizer: SGD}, nadam: {model.optimizer.eps: 1e-7}}}"


def test_options_are_those_without_the_points():
    Path("a.yaml").write_text("model: {lr: 0.5, optimizer: {class_path: NAdam, init_args: {eps: 1e-7}}}")
    options = check(["--config=a.yaml", "--data.batch_size", "8"], read_grid(GRID), "a.yaml")
    assert (options["model.lr"], options["data.batch_size"], options["model.optimizer.eps"]) == (0.5, 8, 1e-7)


@pytest.mark.parametrize(
    ("arguments", "grid", "message"),
    [
        (["--model.lr=-1"], None, "a: lr must be a positive number, got -1"),
        (["--model.lrr=1"], None, "a: (?s:.*)lrr"),
        (["--data.batch_size=0"], None, "a: batch_size must be at least 1, got 0"),
        ([], "{model.lrr: [1]}", "unknown option to vary: .*did you mean 'model.lr'"),
        ([], "{model.lr: [0.1, -1]}", "a with --model.lr=-1: lr must be"),
        ([], "{model.activation: [selu, sellu]}", "a with --model.activation=sellu: (?s:.*)sellu"),
        ([], "{o: {a: {model.optimizer: SGD, model.optimizer.momentun: 1}}}", "a with (?s:.*)momentun"),
        ([], "{n: [0], model.hidden_sizes: '{n}x8'}", "a with --model.hidden_sizes=0x8: hidden_sizes must be"),
        (["--model.lr", "0.1"], "{model.lr: [1, 2]}", "--model.lr is varied and cannot be set as well, got 0.1"),
        (["--model.lr=0.1"], "{o: {a: {model.lr: 1}}}", "--model.lr is varied and cannot be set as well, got 0.1"),
        (
            ["--trainer.fast_dev_run=true"],
            None,
            "--trainer.fast_dev_run does not work for many runs: use runs that can",
        ),
        (["--trainer.default_root_dir=x"], None, "--trainer.default_root_dir does not work for many runs: use --out"),
    ],
)
def test_what_can_not_be_trained(arguments, grid, message):
    with pytest.raises(ValueError, match=message):
        check(arguments, read_grid(grid) if grid else None, "a")
    assert not Path("runs").exists()


@pytest.mark.parametrize("flag", [["--ckpt_path", "last"], ["--ckpt_path=last"], ["--x", "1", "--ckpt_path", "last"]])
def test_flags_are_refused_by_their_name(flag):
    with pytest.raises(ValueError, match="--ckpt_path does not work for many runs: use none, .*; got last"):
        refuse(given_flags(flag), {})
    refuse(given_flags(["--x=ckpt_path"]), {})


def test_names_of_files_and_of_yaml():
    Path("a.b.yaml").touch()
    assert name_of("./a.b.yaml") == "a.b"
    assert name_of("{model.lr: [0.1]}") == "inline"
    assert name_of("x" * 300) == "inline"  # too long for a file


@pytest.mark.parametrize(("given", "chosen"), [("auto", 1), (1, 1), ("1", "1"), ([3], [3])])
def test_one_device(given, chosen):
    assert one_device({"trainer.devices": given, "trainer.num_nodes": 1}, "sweep", "they share it") == chosen


@pytest.mark.parametrize("devices", [2, "2", [0, 1], -1])
def test_several_devices_are_refused(devices):
    with pytest.raises(ValueError, match="--trainer.devices must be 1 in a sweep, since they share it;"):
        one_device({"trainer.devices": devices, "trainer.num_nodes": 1}, "sweep", "they share it")
