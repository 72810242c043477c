import pytest

from cifar_lightning.experiments.search.__main__ import main, split_arguments


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "--trials",
        "val_loss,val_accuracy",
        "tpe,gp,random",
        "auto,median,hyperband,none",
        "--storage",
        "--out",
    ):
        assert text in printed


def test_whose_arguments():
    own, fit = split_arguments(
        ["s.yaml", "--trials", "3", "-c", "a.yaml", "--seed_everything", "-1", "--storage=a.db", "--model.lr", "1e-3"]
    )
    assert own == ["s.yaml", "--trials", "3", "--storage=a.db"]
    assert fit == ["-c", "a.yaml", "--seed_everything", "-1", "--model.lr", "1e-3"]
