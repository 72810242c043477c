"""Everything that the README and the pages of docs/ show is run, or at least parsed; and their links lead somewhere.

The `bash` and `python` blocks of a page run in one directory, in order, on small data. Commands in `text` blocks take
long, such as a study that results came from, so they are only parsed.
"""

import csv
import re
import runpy
import shlex
import tomllib
from importlib import import_module

import pytest
import yaml
from conftest import ROOT, SMALL
from PIL import Image

import cifar_lightning
from cifar_lightning.__main__ import COMMANDS, TRAINER, run
from cifar_lightning.cli.configs import find_config
from cifar_lightning.extras import EXTRAS

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
#: Pages whose commands take long: each of their runs is a process, or they write one file after the other.
SLOW = ["export", "search", "study"]
QUICK = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4"]
#: What a page's option needs there, which is not: a GPU, Fashion MNIST.
ELSEWHERE = {"gpu", "fashion_mnist"}


def name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def blocks(page, *languages):
    """The language and the text of a page's code blocks."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in languages]


def commands(language, text):
    """The words of each command of a block; a `text` block may hold other lines too."""
    lines = [line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    known = re.compile(r"(\w+=\S+ )*(python )?(cifar-lightning|[.\w]+/\w+|pip|torchrun|sbatch) ")
    shown = [shlex.split(line) for line in lines if known.match(f"{line} ")]
    assert language != "bash" or len(shown) == len(list(filter(None, lines))), f"a command that no test knows: {text}"
    return shown


def status(words):
    """The exit status of a command line, run in this process."""
    try:
        run(words)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def arguments(words):
    """The words after cifar-lightning; None for another program, of which it is checked that it knows its options."""
    while "=" in words[0] or words[0] == "python":
        words = words[1:]
    if words[0] == "scripts/fit":  # test_scripts.py has what it adds
        return ["fit", *(words[1:] or ["--config", "one_cycle"])]
    if words[0] == "sbatch":
        assert (ROOT / words[1]).is_file()
        return ["fit", *words[2:]]
    if words[0] == "torchrun":
        return words[words.index("cifar_lightning") + 1 :]
    if words[0] == "cifar-lightning":
        return words[1:]
    if words[:2] == ["pip", "install"]:
        extras = re.search(r"\[(.*)\]", words[2])[1].split(",")
        assert set(extras) <= set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        )
        for module in (module for extra in extras for module in EXTRAS[extra]):
            pytest.importorskip(module)
        return None
    script = (ROOT / words[0]).read_text()
    for word in words[1 : words.index("--") if "--" in words else None]:
        assert not word.startswith("-") or f'"{word}"' in script, f"{words[0]} knows no {word}"
    return None


def parse(words):
    """Parse a command line without running it; what its checkpoint would say is left out."""
    command = COMMANDS[words[0]]
    if "--ckpt_path" in words and command.trains:
        i = words.index("--ckpt_path")
        words = words[:i] + words[i + 2 :]
    if command.module == TRAINER:
        assert status([*words, "--print_config"]) == 0, words
        return
    parser = import_module(f"cifar_lightning.{command.module}").make_parser()
    if not command.trains:
        parser.parse_args(words[1:])
        return
    own, fit = parser.split(words[1:])
    for config in own.get("configs", []):
        assert find_config(config)
    if fit:
        assert status(["fit", *fit, "--print_config"]) == 0, words


def run_small(words, capsys, folder):
    """Run a command on little data; one that needs more than there is is parsed."""
    if words[0] == "--print_completion":
        return  # takes long, and test_commands.py does it
    if ELSEWHERE & set(words):
        parse(words)
        return
    if ">" in words:
        capsys.readouterr()
        assert status(words[: words.index(">")]) == 0
        (folder / words[-1]).write_text(capsys.readouterr().out)
        return
    if words[0] in ("validate", "test", "predict"):
        words = [*words, "--trainer.enable_progress_bar=false"]
    elif words[0] in COMMANDS and COMMANDS[words[0]].trains:
        small = SMALL[3:] if "folder" in words else SMALL
        more = ["--data.synthetic_size=2000"] if "two_classes" in " ".join(words) else []  # for 200 images of two
        words = [*words, *small, *QUICK, *more, *(["--trials=1"] if words[0] == "search" else [])]
    assert status(words) == 0, words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The directory in which a page's commands find the images that they name."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which a study would set
    for image in ("pictures/a", *(f"my_images/{label}/{i}" for label in ("cat", "dog") for i in range(24))):
        path = tmp_path / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)
    return tmp_path


def cases(*languages):
    """The pages with such blocks, of which the slow ones are marked."""
    found = [page for page in PAGES if blocks(page, *languages)]
    return [pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (name(page) in SLOW)) for page in found]


@pytest.mark.parametrize("page", cases("bash", "python"))
def test_what_a_page_shows_runs(page, folder, capsys):
    namespace = {}
    for language, text in blocks(page, "bash", "python"):
        if language == "python":
            exec(compile(text, page.name, "exec"), namespace)
            continue
        for words in map(arguments, commands(language, text)):
            if words:
                run_small(words, capsys, folder)


LONG = [
    pytest.param(words, id=" ".join(words)[:70])
    for page in PAGES
    for language, text in blocks(page, "text", *(["bash"] if name(page) in SLOW else []))
    for words in commands(language, text)
    if name(page) != "terminal"  # which shows mistakes too
]


@pytest.mark.parametrize("words", LONG)
def test_what_takes_long_is_parsed(words, capsys):
    if given := arguments(words):
        parse(given)


def test_each_command_is_shown():
    shown = {words[1] for page in PAGES for block in blocks(page, "bash") for words in commands(*block) if words[1:]}
    assert set(COMMANDS) <= shown


def test_options_in_the_prose_exist():
    from cifar_lightning.cli.completion import trainer_parsers

    known = {option for parser in trainer_parsers().values() for option in parser._option_string_actions}
    for command in COMMANDS.values():
        if command.module != TRAINER:
            parser = import_module(f"cifar_lightning.{command.module}").make_parser()
            known |= set(parser._option_string_actions)
    groups = ("data", "model", "trainer", "evaluation", "execution", "pretrained", "cycle")
    for page in PAGES + OTHERS:
        for option in re.findall(rf"`(--(?:{'|'.join(groups)})\.[a-z]\w*)", page.read_text()):
            assert option in known or option == "--trainer.callbacks", f"{page.name} has {option}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_config_is_listed():
    text = (DOCS / "configs.md").read_text()
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert f"(../{config.relative_to(ROOT)})" in text, config.name


def headings(page):
    """The anchors of a page."""
    titles = re.findall(
        r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=name)
def test_each_block_says_what_it_is(page):
    assert len(re.findall("^```", page.read_text(), re.MULTILINE)) == 2 * len(
        blocks(page, "bash", "python", "text", "yaml")
    )


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), f"{target}#{anchor}"
    for file in re.findall(r"`((?:tests|scripts|docs|configs|examples)/[a-z][\w./-]*\.\w+)", text):
        assert (ROOT / file).exists(), file


def test_the_website_has_every_page_and_every_public_name():
    nav = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    reference = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    for page in PAGES[1:] + OTHERS:
        assert f"'{page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)}'" in nav, page.name
    named = set(re.findall(r"^::: cifar_lightning\.(\w+)$", reference, re.MULTILINE))
    assert named == set(cifar_lightning.__all__)


def test_the_picture_of_accuracies_shows_what_the_pages_say(tmp_path):
    module = runpy.run_path(str(DOCS / "accuracy.py"))
    module["draw"](tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    page, readme = (DOCS / "accuracy.md").read_text(), (ROOT / "README.md").read_text()
    with (DOCS / "accuracy.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            text = page if row["kind"] == "best" else readme
            accuracy = f"{float(row['test_accuracy']):.2f}" + (f" ± {row['deviation']}" if row["deviation"] else "")
            assert re.search(rf"\| (\[)?{row['config']}\b.*\| {re.escape(accuracy)} %", text), row
