"""What doctor finds, and what it says would have to be done."""

import os
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from cifar_lightning.cli import doctor_checks as checks
from cifar_lightning.cli.doctor import format_finding, format_remedies, main, run_checks
from cifar_lightning.cli.doctor_checks import CHECKS, Finding
from cifar_lightning.data.sources import ENVIRONMENT_VARIABLE


def test_it_prints_every_subject_on_a_narrow_screen(capsys):
    main([])
    printed = capsys.readouterr().out
    for subject in CHECKS:
        assert any(line.startswith(f"{subject} ") for line in printed.splitlines()), subject
    assert all(len(line) <= 80 or "/" in line for line in printed.splitlines())  # a path stays whole
    assert "To do:" in printed or printed.endswith("Nothing to do.\n")


def test_each_check_has_its_subject():
    for subject, check in CHECKS.items():
        assert check().subject == subject


def test_remedies():
    assert format_remedies([]) == "Nothing to do."
    some = [Finding("a", "x", "do this"), Finding("b", "y", "and that")]
    assert format_remedies(some) == "To do:\n- a: do this\n- b: and that"
    assert format_finding(Finding("a", "word " * 20 + "\nnext")).splitlines()[-1] == " " * 16 + "next"


def test_a_check_that_fails_is_a_finding():
    def broken():
        raise ImportError("libcudart.so: no such file\nand more")

    (finding,) = run_checks({"devices": broken})
    assert (finding.subject, finding.text) == ("devices", "the check failed: ImportError: libcudart.so: no such file")
    assert finding.remedy


def test_versions_name_what_is_too_old(monkeypatch):
    assert checks.check_versions().remedy == ""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.6.2" if name == "lightning" else real(name))
    finding = checks.check_versions()
    assert "lightning 2.6.2" in finding.text
    assert finding.remedy == 'pip install "lightning<2.7,>=2.6.6"'


def test_imports_that_fail(monkeypatch):
    assert checks.check_imports().remedy == ""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    finding = checks.check_imports()
    assert finding.text.startswith("torchvision can't be imported: ")
    assert "torch torchvision" in finding.remedy


@pytest.mark.parametrize(
    ("missing", "compiler", "newer", "text", "remedy"),
    [
        ([], True, False, "possible", ""),
        (["torch.compiler.x"], True, False, "impossible: torch .* lacks torch.compiler.x", "pip install torch==2.15"),
        ([], False, False, "impossible on CPUs: no C", "install g"),
        ([], True, True, "possible, but untested with torch", ""),
    ],
)
def test_compiled_steps(monkeypatch, missing, compiler, newer, text, remedy):
    monkeypatch.setattr("cifar_lightning.compiled.torch_internals.missing_names", lambda: missing)
    monkeypatch.setattr("cifar_lightning.compiled.torch_internals.is_newer_than_tested", lambda: newer)
    monkeypatch.setattr("cifar_lightning.compiled.step.has_compiler", lambda: compiler)
    finding = checks.check_compiled_steps()
    assert finding.text.startswith(text.split(".*")[0])
    assert finding.text.endswith(text.split(".*")[-1]) or finding.text.startswith(text)
    assert finding.remedy.startswith(remedy)
    assert bool(finding.remedy) == bool(remedy)


def test_data_that_is_not_there(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **options: pytest.fail("a download"))
    finding = checks.check_data()
    assert finding.text == f"not in {Path('data').absolute()}, the default folder"
    assert "CIFAR10_DIR" in finding.remedy
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "nowhere")
    assert checks.check_data().text.startswith("CIFAR10_DIR must be a directory")


def test_data_that_is_damaged(monkeypatch):
    Path("there").mkdir()
    Path("there/cifar-10-python.tar.gz").write_text("half of it")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "there")
    finding = checks.check_data()
    assert finding.text.startswith("altered or truncated file there/cifar-10-python.tar.gz")
    assert finding.remedy


@pytest.mark.real
def test_data_that_is_there(monkeypatch, cifar10_dir):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, cifar10_dir)
    finding = checks.check_data()
    assert "50,000 and 10,000 images, checksums correct" in finding.text
    assert finding.text.startswith(cifar10_dir)
    assert finding.remedy == ""


def test_extras(monkeypatch):
    for extra in ("export", "hub", "parquet"):  # which the tests do without
        monkeypatch.delitem(checks.EXTRAS, extra)
    assert checks.check_extras() == Finding("extras", "search: installed; study: installed")
    monkeypatch.setitem(sys.modules, "optuna", None)
    finding = checks.check_extras()
    assert finding.text == "search: no optuna; study: installed"
    assert finding.remedy == 'for search, pip install "cifar_lightning[search]"'
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert checks.check_extras().remedy == 'for search and study, pip install "cifar_lightning[search,study]"'


def script(folder, name, code):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


OURS = "from cifar_lightning.__main__ import lightning"


def test_who_owns_the_script(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    finding = checks.check_script()
    assert "lightning is not on the path" in finding.text
    assert f"put {Path(sys.executable).parent} on the path" in finding.remedy
    script(tmp_path / "bin", "cifar-lightning", OURS)
    path = script(tmp_path / "bin", "lightning", OURS)
    finding = checks.check_script()
    assert f"lightning is {path}, from cifar_lightning" in finding.text
    assert finding.remedy == ""
    script(tmp_path / "bin", "lightning", "from litserve.cli import main")
    finding = checks.check_script()
    assert f"lightning is {path}, from an unknown package" in finding.text
    assert "cifar-lightning" in finding.remedy


def test_the_owner_of_a_program_for_windows(tmp_path):
    program = tmp_path / "lightning.exe"
    with zipfile.ZipFile(program, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", OURS)
    program.write_bytes(b"MZ launcher" + program.read_bytes())
    assert checks.owner_of(program) == "cifar_lightning"


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for check, name in ((checks.check_runs, "runs"), (checks.check_cache, "cache/cifar_lightning")):
        finding = check()
        assert finding.text == f"{tmp_path / name}: writable"
        assert finding.remedy == ""
    assert not list(tmp_path.iterdir())  # nothing was made
    (tmp_path / "cache").touch()
    finding = checks.check_cache()
    assert "not writable" in finding.text
    assert "TORCHINDUCTOR_CACHE_DIR" in finding.remedy


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_access(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "not writable: Permission denied" in checks.check_runs().text
    finally:
        tmp_path.chmod(0o700)


def test_a_gpu_without_a_torch_for_it(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert checks.check_devices() == Finding("devices", "CPU only")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert checks.check_devices().remedy.startswith("install a matching torch or driver")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert checks.check_devices().text.startswith("card 0, card 1; ")
