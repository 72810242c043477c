import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT

import cifar_lightning


@pytest.mark.parametrize(
    ("statement", "kept_out"),
    [
        ("import cifar_lightning", {"torch", "lightning", "matplotlib"}),
        (
            "from cifar_lightning import DeepMLP, CompiledStep, find_lr, mc_predict, OneCycle, measure_signals",
            {"lightning", "matplotlib", "torchvision", "torch._dynamo"},
        ),
    ],
)
def test_importing_imports_no_more_than_is_needed(statement, kept_out):
    code = f"{statement}; import sys; print({kept_out} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_public_names():
    for name in cifar_lightning.__all__:
        assert getattr(cifar_lightning, name) is not None
        assert name in dir(cifar_lightning)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        cifar_lightning.Nonsense  # noqa: B018


def test_an_editable_install_shows_its_types_to_mypy(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    project, user = tmp_path / "project", tmp_path / "user"
    shutil.copytree(ROOT / "cifar_lightning", project / "cifar_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    # What pip does, without a network.
    code = "from setuptools.build_meta import build_editable as build; build('wheel')"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True)
    venv.create(user / "venv")
    site = user / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (wheel,) = (project / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (user / "program.py").write_text('from cifar_lightning import AlphaDropout\n\nAlphaDropout(p="half")\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", "venv/bin/python", "program.py"]
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=user, env=elsewhere, capture_output=True, text=True, check=False)
    assert 'program.py:3: error: Argument "p" to "AlphaDropout" has incompatible type "str"' in done.stdout
    assert "Found 1 error" in done.stdout
