"""The one command: its table, its help, and what it does with a word that is none of its commands."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cifar_lightning
from cifar_lightning import __main__ as commands
from cifar_lightning.__main__ import COMMANDS, TRAINER, lightning, run, split

NAMES = ["fit", "validate", "test", "predict", "find-lr", "sweep", "search", "study", "signals", "plot-schedule"]
NAMES += ["training-images", "export", "configs", "doctor"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["-h", "fit"]])
def test_help_lists_all_commands_with_a_line_each(capsys, arguments):
    run(arguments)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if re.match(r"  [a-z-]+  +\w", line)] == NAMES
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["configs"], ["configs", "selu"], ["fitt"]])
def test_what_trains_nothing_imports_nothing_that_takes_long(words):
    code = (
        "import sys; from cifar_lightning.__main__ import run\n"
        f"try: run({words})\nexcept SystemExit: pass\n"
        "print('imported:', {'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: set()\n")


def test_version(capsys):
    run(["--version"])
    assert capsys.readouterr().out == f"cifar-lightning {cifar_lightning.__version__}\n"


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_a_help_of_its_own(capsys, name):
    with pytest.raises(SystemExit) as stop:
        run([name, "--help"])
    assert stop.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in NAMES if COMMANDS[name].module != TRAINER])
def test_each_module_has_a_parser_and_a_main(name):
    module = import_module(f"cifar_lightning.{COMMANDS[name].module}")
    assert module.make_parser().prog == f"cifar-lightning {name}"
    assert callable(module.main)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ([], "", [])),
        (["fit", "--model.lr", "1"], ([], "fit", ["--model.lr", "1"])),
        (["--config", "fit", "test"], (["--config", "fit"], "test", [])),
        (["-c", "a", "--config=b", "find-lr", "-c", "d"], (["-c", "a", "--config=b"], "find-lr", ["-c", "d"])),
        (["--print_completion", "shtab-zsh"], (["--print_completion", "shtab-zsh"], "", [])),
    ],
)
def test_the_command_is_found(arguments, expected):
    assert split(arguments) == expected


@pytest.mark.parametrize(("name", "expected"), [("fit", "--config a fit -x"), ("find-lr", "--config a -x")])
def test_a_config_may_stand_before_the_command(monkeypatch, name, expected):
    called = []
    monkeypatch.setattr(f"cifar_lightning.{COMMANDS[name].module}.main", lambda args: called.append(" ".join(args)))
    run(["--config", "a", name, "-x"])
    assert called == [expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "unknown command: expected one of fit, .*; got 'fitt' (did you mean 'fit'"),
        (["find_lr"], "did you mean 'find-lr'"),
        (["selu"], "got 'selu': did you mean fit --config selu[?]"),
        (["plot_schedule"], "did you mean 'plot-schedule'"),
        (["--config", "one_cycle"], "no command: expected one of fit, .*; got --config one_cycle"),
        (["--model.lr", "0.1"], "unknown command: expected one of fit, .*; got '0.1'"),
        (["--print_completion", "fish"], "unknown completion: expected one of shtab-bash, .*; got 'fish'"),
    ],
)
def test_a_wrong_word_is_answered_in_one_message(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert re.search(message.replace("(", r"\("), said)


def test_ctrl_c_has_a_status_of_its_own(monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("cifar_lightning.cli.configs.main", interrupt)
    with pytest.raises(SystemExit) as stop:
        run(["configs"])
    assert stop.value.code == 130


@pytest.mark.parametrize(("name", "module", "extra"), [("search", "optuna", "search"), ("study", "plotly", "study")])
def test_a_missing_extra_is_named_before_anything_is_done(monkeypatch, capsys, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stop:
        run([name, "one_cycle", "--config", "one_cycle"])
    assert stop.value.code == 2
    assert f'pip install "cifar_lightning[{extra}]"' in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("words", "ours"), [(["deploy"], False), (["fit"], True), ([], True), (["--help"], True)])
def test_the_lightning_script_leaves_unknown_commands_to_lightning_sdk(monkeypatch, words, ours):
    called = []
    sdk = type(sys)("lightning_sdk.cli.entrypoint")
    sdk.main_cli = lambda: called.append("theirs")
    for name in ("lightning_sdk", "lightning_sdk.cli", "lightning_sdk.cli.entrypoint"):
        monkeypatch.setitem(sys.modules, name, sdk)
    monkeypatch.setattr(commands, "find_spec", lambda name: object())
    monkeypatch.setattr(commands, "main", lambda: called.append("ours"))
    monkeypatch.setattr(sys, "argv", ["lightning", *words])
    lightning()
    assert called == ["ours" if ours else "theirs"]


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def test_completion_knows_all_commands_and_their_options(shell):
    # In a process of its own, for it lists every class that any test has imported, and takes twice as long.
    command = [sys.executable, "-m", "cifar_lightning", "--print_completion", f"shtab-{shell}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in NAMES:
        assert f"_{name.replace('-', '_')}" in done.stdout, name
    for option in ("--model.activation", "--max_lr", "--num_images", "--vary", "--seeds", "--trials"):
        assert option in done.stdout, option
    if shell == "bash":
        (find_lr,) = re.findall(r"^_shtab_cifar_lightning_find_lr_option_strings=\((.*)\)$", done.stdout, re.MULTILINE)
        assert {"--max_lr", "--config", "--trainer.max_epochs", "--model.lr"} <= set(find_lr.replace("'", "").split())
        Path("completion.bash").write_text(done.stdout)
        assert subprocess.run(["bash", "-n", "completion.bash"], check=False).returncode == 0
    assert len(done.stdout) < 10_000_000  # a shell reads it at each start
