import subprocess
import sys

import pytest

import cifar_lightning
from cifar_lightning.__main__ import lightning


def test_importing_the_package_imports_neither_lightning_nor_matplotlib_nor_the_compiler():
    kept_out = {"lightning", "matplotlib", "torchvision", "torch._dynamo"}
    code = f"import cifar_lightning, sys; print({kept_out} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_public_names():
    for name in cifar_lightning.__all__:
        assert getattr(cifar_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        cifar_lightning.Nonsense  # noqa: B018


def test_the_lightning_script_leaves_unknown_commands_to_lightning_sdk(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning", "deploy"])
    with pytest.raises(SystemExit) as stop:
        lightning()
    expected = "expected one of fit, validate, test, predict, or lightning-sdk installed; received 'deploy'"
    assert expected in stop.value.code  # a text, which Python prints, with status 1


def test_the_lightning_script_runs_our_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--help"])
    with pytest.raises(SystemExit) as stop:
        lightning()
    assert stop.value.code == 0
    assert "--model.hidden_sizes" in capsys.readouterr().out
