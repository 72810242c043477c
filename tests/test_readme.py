"""Everything that the README shows is run: its shell commands in one directory, in order, and its Python."""

import re
import shlex

import pytest
from conftest import ROOT, SMALL
from PIL import Image

from cifar_lightning.experiments.search.__main__ import main as search
from cifar_lightning.experiments.study.__main__ import main as study

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
QUICK = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4"]


def test_commands(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which a study would set
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / "a.png")
    ran = 0
    for command in COMMANDS:
        words = [word for word in shlex.split(command) if not word.startswith("CIFAR10_DIR=")]
        match words[0]:
            case "scripts/fit":
                args = ["fit", *words[1:]]
                if not any(word.startswith(("--config", "--ckpt_path")) for word in words):
                    args[1:1] = ["--config", "configs/one_cycle.yaml"]
            case "lightning" | "cifar-lightning":
                args = words[1:]
                if args == ["--print_completion", "shtab-bash"]:
                    continue  # takes long, and test_shell_completion does it
            case "python" if words[1:3] == ["-m", "cifar_lightning"]:
                args = words[3:]
            case "scripts/find_lr":
                args = ["fit", *words[1:], "--trainer.callbacks+=LRFinder", "--trainer.callbacks.stop=true"]
            case "scripts/sweep":
                args = ["fit", *words[2:], "--trainer.callbacks+=Sweep", f"--trainer.callbacks.vary={words[1]}"]
            case "scripts/study":
                assert study([*words[1:], "--out=study", *SMALL, *QUICK]) == 0
                ran += 1
                continue
            case "scripts/plot_schedule":
                args = ["fit", *words[1:], "--trainer.callbacks+=SchedulePlot"]
            case "scripts/search":
                search([*words[1:], *SMALL, *QUICK, "--trials=1"])
                ran += 1
                continue
            case "scripts/signals":
                args = ["fit", *words[1:], "--trainer.callbacks+=SignalPicture", "--trainer.callbacks.stop=true"]
            case _:
                pytest.fail(f"the README shows a command that no test knows: {command}")
        ran += 1
        if "gpu" in args or any(arg.startswith(("--print", "--help")) for arg in args):
            with pytest.raises(SystemExit) as stop:
                run(*args, *([] if "gpu" not in args else ["--print_config"]))
            assert stop.value.code in (0, None), command
        elif args[0] == "fit":
            enough = ["--data.synthetic_size=2000"] if "two_classes" in command else []  # for 200 images of two
            run(*args, *SMALL, *QUICK, *enough)
        else:
            run(*args, "--trainer.enable_progress_bar=false")
    assert ran >= 5


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
