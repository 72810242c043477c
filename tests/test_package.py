import subprocess
import sys

import pytest

import cifar_lightning


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_does_not_import_lightning():
    done = python("import cifar_lightning, sys; print('lightning' in sys.modules, 'torchvision' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_public_names():
    for name in cifar_lightning.__all__:
        assert getattr(cifar_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        cifar_lightning.Nonsense  # noqa: B018


def test_the_lightning_script_leaves_unknown_commands_to_lightning_sdk():
    code = "import sys; sys.argv = ['lightning', 'deploy']; from cifar_lightning.__main__ import lightning; lightning()"
    done = python(code)
    assert done.returncode != 0
    assert "expected one of fit, validate, test, predict, or lightning-sdk installed; received 'deploy'" in done.stderr


def test_the_lightning_script_runs_our_commands():
    code = "import sys; sys.argv = ['lightning', 'fit', '--help']; from cifar_lightning.__main__ import lightning; "
    done = python(code + "lightning()")
    assert done.returncode == 0
    assert "--model.hidden_sizes" in done.stdout
