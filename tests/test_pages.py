"""Everything that the README shows is run: its shell commands in one directory, in order, and its Python."""

import re
import shlex

import pytest
from conftest import ROOT, SMALL
from PIL import Image

from cifar_lightning.__main__ import COMMANDS, run

README = (ROOT / "README.md").read_text()
SHOWN = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
MORE = {"study": ["--out=study"], "search": ["--trials=1"]}
QUICK = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4"]


def status(words):
    """The exit status of a command line, run in this process."""
    try:
        run(words)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which a study would set
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / "a.png")
    for line in SHOWN:
        script, *words = [word for word in shlex.split(line) if not word.startswith("CIFAR10_DIR=")]
        if script == "scripts/fit":  # test_scripts.py has what it adds
            words = ["fit", *(words or ["--config", "one_cycle"])]
        else:
            assert script == "cifar-lightning", f"the README shows a command that no test knows: {line}"
        if words[0] == "--print_completion":
            continue  # takes long, and test_commands.py does it
        if ">" in words:
            capsys.readouterr()
            assert status(words[: words.index(">")]) == 0
            (tmp_path / words[-1]).write_text(capsys.readouterr().out)
            continue
        if "gpu" in words:
            words.append("--print_config")
        elif words[0] in ("validate", "test", "predict"):
            words.append("--trainer.enable_progress_bar=false")
        elif words[0] in COMMANDS and COMMANDS[words[0]].trains:
            enough = ["--data.synthetic_size=2000"] if "two_classes" in line else []  # for 200 images of two
            words += [*MORE.get(words[0], []), *SMALL, *QUICK, *enough]
        assert status(words) == 0, line


def test_each_command_is_shown():
    assert set(COMMANDS) <= {line.split()[1] for line in SHOWN if line.startswith("cifar-lightning ")}


def test_python():
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_every_config_is_listed():
    for config in (ROOT / "configs").rglob("*.yaml"):
        folder = config.parent.relative_to(ROOT)  # of those in a folder inside of it, the folder is listed
        assert str(folder if folder.name != "configs" else folder / config.name) in README, config.name


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_pages_name_files_that_there_are(page):
    text = page.read_text()
    for name in re.findall(r"`((?:tests|scripts|docs|configs)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
