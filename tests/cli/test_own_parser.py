"""A command's own options are told from those of `fit`, and mistakes end in one line."""

import pytest

from cifar_lightning.cli.own_parser import OwnParser
from cifar_lightning.experiments.search.command import make_parser as search
from cifar_lightning.experiments.study.command import make_parser as study
from cifar_lightning.experiments.sweep.command import make_parser as sweep


def make_parser():
    parser = OwnParser(command="try")
    parser.add_argument("files", nargs="*", type=str)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--storage", type=str, default="")
    return parser


def test_whose_arguments():
    own, fit = make_parser().split(
        ["s.yaml", "--trials", "3", "-c", "a.yaml", "--seed_everything", "-1", "--storage=a.db", "--model.lr", "1e-3"]
    )
    assert (own.files, own.trials, own.storage) == (["s.yaml"], 3, "a.db")
    assert fit == ["-c", "a.yaml", "--seed_everything", "-1", "--model.lr", "1e-3"]


@pytest.mark.parametrize(
    ("parser", "arguments", "said"),
    [
        (make_parser, ["--trial", "3"], "--trial is not an option: did you mean --trials?"),
        (make_parser, ["--trials", "many"], "many"),
        (sweep, ["--varry", "{}"], "--varry is not an option: did you mean --vary?"),
        (study, ["selu", "--seed", "1"], "--seed is not an option: did you mean --seeds?"),
        (study, ["selu", "--sedes", "1"], "--sedes is not an option: did you mean --seeds?"),
        (study, [], "configs"),
        (search, ["--vari", "tuner"], "--vari is not an option: did you mean --vary?"),
        (search, [], "vary"),
        (search, ["selu", "--vary", "tuner"], "got 'selu': did you mean --config selu?"),
        (sweep, ["3"], "a value without an option: expected --OPTION VALUE, got '3' (see"),
    ],
)
def test_a_mistake_ends_in_one_line(capsys, parser, arguments, said):
    with pytest.raises(SystemExit) as stop:
        parser().split(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert "--help)" in error


def test_habits_are_left_to_fit():
    assert sweep().split(["--vary", "a", "--epochs", "5"])[1] == ["--epochs", "5"]
