import pytest

from cifar_lightning.experiments.search.__main__ import main


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
