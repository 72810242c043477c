"""A user's own classes, by import path, from the folder in which the command is run."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL

from cifar_lightning.cli.own_classes import flatten, without_classes

QUIET = ["--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]
ONE = "--trainer.max_epochs=1"
TINY = "--model.hidden_sizes=1x8"
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def _mine(monkeypatch):
    """A folder with modules of one's own, which no test has imported yet."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copy(Path(__file__).parent / "own" / "mine.py", "mine.py")
    Path("broken.py").write_text("raise RuntimeError('the moon is in the wrong phase\\nand so on')")
    Path("wrong.py").write_text("def f(:")
    Path("needy.py").write_text("import not_there_at_all")
    Path("quitter.py").write_text("raise SystemExit('enough')")
    for name in ("mine", "broken", "needy", "quitter", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


def newest(pattern):
    return max(Path("runs").rglob(pattern), key=lambda path: path.stat().st_mtime_ns)


def saved(kind=""):
    return yaml.safe_load(newest(f"{kind}*/config.yaml").read_text())


# ------------------------------------------------------------------------------------------ a subclass of MLPClassifier


def test_a_subclass_has_all_that_ours_has_and_its_own_arguments(run, fail):
    run("fit", "--model", "mine.Wider", "--model.extra", "5", TINY, *SMALL, ONE)
    assert type(sys.modules["mine"]).__name__ == "module"
    assert saved()["model"]["class_path"] == "mine.Wider"
    assert saved()["model"]["extra"] == 5
    last = str(newest("last.ckpt"))
    assert torch.load(last, weights_only=True)["hyper_parameters"]["extra"] == 5
    assert "deterministic" in run("test", "--ckpt_path", last, *QUIET)
    assert saved("test_")["model"]["extra"] == 5
    assert "calibrated, T = " in run("validate", "--ckpt_path", last, "--evaluation.calibrate=true", *QUIET)
    assert "60 images" in run("predict", "--ckpt_path", last, *QUIET)
    assert "epoch   2" in run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")
    assert saved("2")["model"]["extra"] == 5
    message = fail("test", "--ckpt_path", last, "--model", "MLPClassifier")
    assert "--model contradicts the checkpoint: expected mine.Wider, as in training" in message
    assert "--model.extra contradicts the checkpoint: expected 5" in fail(
        "test", "--ckpt_path", last, "--model.extra=6"
    )


@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "mine.Wider", "extra": 7, "lr": 0.25},
        {"class_path": "mine.Wider", "init_args": {"extra": 7, "lr": 0.25}},
    ],
)
@pytest.mark.parametrize("flags", [[], ["--model", "mine.Wider"], ["--model.class_path=mine.Wider"]])
def test_in_a_config(run, model, flags):
    Path("a.yaml").write_text(yaml.safe_dump({"model": model}))
    run("fit", "--config=a.yaml", *flags, TINY, *SMALL, ONE)
    run("test", "--config=a.yaml", "--ckpt_path=best", *QUIET)
    for kind in ("2", "test_"):
        config = saved(kind)["model"]
        assert (config["class_path"], config["extra"], config["lr"]) == ("mine.Wider", 7, 0.25)


def test_the_flags_class_wins_over_the_configs(run):
    Path("a.yaml").write_text("model: mine.Net\ndata: mine.Noise")
    run("fit", "--config=a.yaml", "--model=mine.Wider", "--model.init_args.extra=2", TINY, ONE, *QUIET)
    assert saved()["model"]["extra"] == 2
    assert saved()["data"] == {"class_path": "mine.Noise", "size": 64}


def test_a_printed_config_is_flat_and_a_config(capfd, run):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit):
        main(["fit", "--model=mine.Wider", "--model.extra=9", TINY, "--data=mine.Noise", ONE, *QUIET, "--print_config"])
    printed = capfd.readouterr().out
    Path("printed.yaml").write_text(printed)
    config = yaml.safe_load(printed)
    assert (config["model"]["extra"], config["model"]["lr"], config["data"]["size"]) == (9, 1e-3, 64)
    run("fit", "--config=printed.yaml")
    run("fit", f"--config={newest('config.yaml')}")
    assert saved()["model"] | {"hidden_sizes": "1x8"} == config["model"] | {"hidden_sizes": "1x8"}


def test_help_lists_its_arguments(capfd):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit):
        main(["fit", "--model=mine.Wider", "--help"])
    printed = " ".join(capfd.readouterr().out.split())
    assert "--model.extra EXTRA" in printed
    assert "How much wider." in printed
    assert "--model.hidden_sizes" in printed
    assert "--data CLASS Import path of your own LightningDataModule, such as my.module.MyClass" in printed


def test_a_subclass_with_fewer_options(run, fail):
    run("fit", "--model=mine.Fixed", "--model.lr=0.125", *SMALL, ONE)
    last = str(newest("last.ckpt"))
    assert "deterministic" in run("test", "--ckpt_path", last, *QUIET)
    assert saved("test_")["model"] == {"class_path": "mine.Fixed", "lr": 0.125}
    assert "epoch   2" in run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")
    assert "--model.activation is not an option of mine.Fixed" in fail(
        "fit", "--model=mine.Fixed", "--model.activation=elu"
    )


def test_a_class_that_has_moved_is_found_where_it_is_now(run, fail, monkeypatch):
    run("fit", "--model=mine.Bare", "--data=mine.Noise", ONE, *QUIET)
    last = str(newest("last.ckpt"))
    Path("mine.py").rename("theirs.py")
    monkeypatch.delitem(sys.modules, "mine")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    importlib.invalidate_caches()
    message = fail("fit", "--ckpt_path", last, "--trainer.max_epochs=2")
    assert "the checkpoint's model: expected the import path of a LightningModule" in message
    assert "got 'mine.Bare', but there is no module 'mine'" in message
    run("fit", "--ckpt_path", last, "--model=theirs.Bare", "--data=theirs.Noise", "--trainer.max_epochs=2")


# -------------------------------------------------------------------------------------- another module, other data


def test_another_module_has_what_its_hooks_give(run):
    printed = run("fit", "--model=mine.Net", "--model.channels=5", *SMALL, ONE)
    assert "epoch   1  train_loss" in printed
    assert "written to" in printed
    last = str(newest("last.ckpt"))
    assert newest("best.ckpt").is_file()
    assert "val_loss" in run("validate", "--ckpt_path", last, *QUIET)
    assert newest("evaluation.csv").parent.name.startswith("validate_")  # its step returns logits
    assert "test_loss" in run("test", "--ckpt_path", last, *QUIET)  # its step returns the loss
    assert saved("test_")["model"] == {"class_path": "mine.Net", "channels": 5, "rate": 0.01}
    run("predict", "--ckpt_path", last, *QUIET)
    rows = newest("predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == 60
    assert all(0 < float(row.split(",")[3]) <= 1 for row in rows)
    assert "epoch   2" in run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")


def test_arguments_without_a_default_or_a_type(run, fail):
    message = fail("fit", "--model=mine.Needs", *SMALL)
    assert "--model.width is missing: it needs a value, since mine.Needs has no default for it" in message
    run("fit", "--model=mine.Needs", "--model.width=7", "--model.name=[a, 1]", *SMALL, ONE)
    last = str(newest("last.ckpt"))
    assert "deterministic" in run("test", "--ckpt_path", last, *QUIET)
    assert saved("test_")["model"] == {"class_path": "mine.Needs", "width": 7, "name": ["a", 1]}
    assert "expected 7" in fail("test", "--ckpt_path", last, "--model.width=8", *QUIET)
    run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")


def test_options_that_are_called_as_ours_may_mean_something_else(run, fail):
    flags = ["--model.optimizer=a.b", "--model.activation=relu7", "--model.hidden_sizes=wide", "--model.dropout=0.2"]
    schedule = "--model.schedule={class_path: none, x: 1}"
    run("fit", "--model=mine.Named", *flags, schedule, "--data=mine.Noise", ONE, *QUIET)
    run("fit", "--ckpt_path", str(newest("last.ckpt")), "--trainer.max_epochs=2")
    assert saved()["model"]["optimizer"] == "a.b"
    message = fail("fit", "--model=mine.Named", "--dropout=0.3")
    assert "--dropout is not an option: did you mean --model.dropout 0.3?" in message


def test_a_module_that_is_given_its_parts(run, fail):
    flags = ["--model.body=mine.Body", "--model.body.width=6", "--model.optimizer=Adam", "--model.optimizer.lr=0.01"]
    run("fit", "--model=mine.Composed", *flags, *SMALL, ONE)
    last = str(newest("last.ckpt"))
    assert "deterministic" in run("test", "--ckpt_path", last, *QUIET)
    body = saved("test_")["model"]["body"]
    assert body == {"class_path": "mine.Body", "init_args": {"width": 6}}
    run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")
    assert "--model.body is missing" in fail("fit", "--model=mine.Composed", *SMALL)


@pytest.mark.parametrize(
    ("flags", "subcommand"),
    [
        (["--execution.compile=always"], "fit"),
        (["--execution.steps=3"], "fit"),
        (["--execution.float32_matmul_precision=high"], "fit"),
        (["--cycle.resume=new"], "fit"),
        (["--pretrained.checkpoint=mine.py"], "fit"),
        (["--evaluation.calibrate=true"], "validate"),
        (["--evaluation.ensemble=mine.py"], "test"),
    ],
)
def test_what_only_ours_can_is_refused_by_name(run, fail, flags, subcommand):
    run("fit", "--model=mine.Bare", "--data=mine.Noise", ONE, *QUIET)
    which = [] if subcommand == "fit" else ["--ckpt_path", str(newest("last.ckpt"))]
    message = fail(subcommand, "--model=mine.Bare", "--data=mine.Noise", *which, *flags)
    assert f"{flags[0].partition('=')[0]} has no effect here: it needs an MLPClassifier" in message
    assert "got mine.Bare" in message


def test_a_saved_config_names_defaults_of_ours_and_asks_for_nothing(run):
    run("fit", "--model=mine.Bare", "--data=mine.Noise", ONE, *QUIET)
    first = newest("config.yaml")
    run("fit", f"--config={first}")
    assert newest("config.yaml") != first
    assert saved()["data"]["class_path"] == "mine.Noise"


def test_a_module_without_a_validation_loss_has_no_best_checkpoint_and_says_so(run, recwarn):
    run("fit", "--model=mine.Quiet", "--data=mine.Noise", ONE, *QUIET)
    assert any("best.ckpt is not written: Quiet validates but logs no val_loss" in str(w.message) for w in recwarn)
    assert not list(Path().rglob("best.ckpt"))
    assert list(Path().rglob("last.ckpt"))


@pytest.mark.parametrize(
    ("subcommand", "message"), [("test", "No `test_step()` method"), ("predict", "Bare can't predict: expected a")]
)
def test_a_hook_that_is_missing_is_named(run, fail, subcommand, message):
    run("fit", "--model=mine.Bare", *SMALL, ONE)
    assert message in fail(subcommand, "--ckpt_path", str(newest("last.ckpt")), *QUIET)


def test_other_data_with_our_model(run):
    run("fit", "--data=mine.Noise", "--data.size=48", TINY, ONE, *QUIET)
    last = str(newest("last.ckpt"))
    assert "48 images" in run("test", "--ckpt_path", last, *QUIET)
    assert "32 images" in run("test", "--ckpt_path", last, "--data.size=32", *QUIET)
    run("predict", "--ckpt_path", last, *QUIET)
    assert "epoch   2" in run("fit", "--ckpt_path", last, "--trainer.max_epochs=2")


def test_an_evaluation_may_use_other_data(run):
    run("fit", TINY, *SMALL, ONE)
    assert "64 images" in run("test", "--ckpt_path", str(newest("last.ckpt")), "--data=mine.Noise", *QUIET)


def test_a_subclass_of_our_data(run):
    run("fit", "--data=mine.Half", "--data.half=false", TINY, *SMALL, ONE)
    run("test", "--ckpt_path", str(newest("last.ckpt")), *QUIET)
    assert saved("test_")["data"]["half"] is False
    assert saved("test_")["data"]["synthetic_size"] == 300


# ------------------------------------------------------------------------------- callbacks, activations, optimizers


def test_an_ensemble_and_a_start_from_layers_of_a_subclass(run):
    for seed in ("1", "2"):
        run("fit", "--model=mine.Wider", "--model.extra=5", f"--seed_everything={seed}", TINY, *SMALL, ONE)
    one, two = (str(path) for path in Path("runs").rglob("last.ckpt"))
    assert "ensemble of 2" in run("test", "--ckpt_path", one, "--evaluation.ensemble", two, *QUIET)
    run("fit", "--model=mine.Wider", f"--pretrained.checkpoint={one}", TINY, *SMALL, ONE)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("LRFinder", "hyperparameters, channels, rate; got 'lr'"),
        ("SignalPicture", "needs an MLPClassifier and"),
        ("FreezePretrained", "expected reused layers"),
    ],
)
def test_our_callbacks_say_what_they_are_for(fail, callback, message):
    assert message in fail("fit", "--model=mine.Net", *SMALL, ONE, f"--trainer.callbacks+={callback}")


def test_callbacks_by_path_and_by_short_name(run):
    flags = ["--trainer.callbacks+=mine.Hello", "--trainer.callbacks.word=hi", "--trainer.callbacks+=SchedulePlot"]
    assert "Hello says hi" in run("fit", TINY, *SMALL, ONE, *flags)
    assert newest("schedule.png").is_file()


def test_an_activation_and_an_optimizer(run):
    flags = ["--model.activation=mine.Swish2", "--model.activation_args.beta=1.5", "--model.optimizer=mine.Heavy"]
    run("fit", *flags, "--model.optimizer.momentum=0.25", TINY, *SMALL, ONE)
    last = str(newest("last.ckpt"))
    hparams = torch.load(last, weights_only=True)["hyper_parameters"]
    assert (hparams["activation"], hparams["activation_args"]) == ("mine.Swish2", {"beta": 1.5})
    assert hparams["optimizer"] == {"class_path": "mine.Heavy", "init_args": {"momentum": 0.25}}
    sys.modules.pop("mine")  # another process has not imported it yet
    assert "deterministic" in run("test", "--ckpt_path", last, *QUIET)


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere_to_be_found.Net", "there is no module 'nowhere_to_be_found': it is neither in the current folder, "),
        ("mine.deeper.Net", "there is no module 'mine.deeper'"),
        ("broken.Net", "broken can't be imported: RuntimeError: the moon is in the wrong phase"),
        ("needy.Net", "needy can't be imported: it needs 'not_there_at_all'"),
        ("quitter.Net", "quitter can't be imported: SystemExit: enough"),
        ("wrong.Net", "wrong can't be imported: SyntaxError: invalid syntax (wrong.py, line 1)"),
        ("mine.Nett", "mine has no Nett; did you mean mine.Net?"),
        ("mine.Noise", "got 'mine.Noise', which is a class of another kind"),
        ("mine.function", "got 'mine.function', which is a function"),
        ("Net", "expected the import path of a LightningModule, as in my.module.MyClass; got 'Net'"),
        ("mine:Net", "got 'mine:Net'"),
        ("my net.Net", "got 'my net.Net'"),
    ],
)
@pytest.mark.parametrize("flags", [["--model={}"], ["--config={{model: '{}'}}"]], ids=["flag", "config"])
def test_an_import_that_fails(fail, path, problem, flags):
    message = fail("fit", *(flag.format(path) for flag in flags))
    assert message.startswith("error: --model: expected the import path of a LightningModule")
    assert problem in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--data=mine.Net", "--data: expected the import path of a LightningDataModule"),
        ("--trainer.callbacks+=mine.Helo", "mine has no Helo; did you mean mine.Hello?"),
        ("--trainer.callbacks+=mine.Net", "--trainer.callbacks: expected the import path of a Callback"),
        ("--trainer.callbacks+=broken.Hello", "broken can't be imported: RuntimeError: the moon"),
        ("--trainer.callbacks=[mine.Hello, needy.Hello]", "needy can't be imported: it needs"),
        ("--model.activation=mine.Swish3", "mine has no Swish3; did you mean mine.Swish2?"),
        ("--model.activation=mine.Heavy", "--model.activation: expected the import path of a Module"),
        ("--model.optimizer=mine.Swish2", "--model.optimizer: expected the import path of an Optimizer"),
        ("--model.optimizer=broken.Heavy", "broken can't be imported"),
        (
            "--model=mine.Wider --model.extr=3",
            "--model.extr is not an option of mine.Wider: did you mean --model.extra 3",
        ),
        ("--model=mine.Net --model.hidden_sizes=1x8", "--model.hidden_sizes is not an option of mine.Net"),
    ],
)
def test_a_class_that_does_not_fit(fail, flag, problem):
    message = fail("fit", *flag.split(" --", 1)[:1], *(f"--{rest}" for rest in flag.split(" --", 1)[1:]))
    assert problem in message
    assert len(message.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("said", "flat"),
    [
        ({"model": "a.B", "data": {"class_path": "a.C"}}, {}),
        ({"model": {"class_path": "a.B", "lr": 1}}, {"model": {"lr": 1}}),
        ({"model": {"class_path": "a.B", "init_args": {"lr": 1}}}, {"model": {"lr": 1}}),
        ({"fit": {"data": "a.B", "trainer": {}}}, {"fit": {"trainer": {}}}),
        ({"model": {"lr": 1}}, {"model": {"lr": 1}}),
        ({"model": "mine.py"}, {"model": "mine.py"}),  # a file of options
        (None, None),
    ],
)
def test_options_without_classes(said, flat):
    assert flatten(said) == flat


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--model", "a.B", "--x", "1"], ["--x", "1"]),
        (["--model=a.B"], []),
        (["--model.class_path=a.B", "--data.class_path", "a.C"], []),
        (["--model.init_args.lr=1", "--model.lr", "2"], ["--model.lr=1", "--model.lr", "2"]),
        (["--model={class_path: a.B, init_args: {lr: 1}}"], ['--model={"lr": 1}']),
        (["--model", "mine.py"], ["--model=mine.py"]),
        (["--config={a: 1}"], ["--config={a: 1}"]),
        (["--config={model: a.B, x: 1}"], [f"--config={json.dumps({'x': 1})}"]),
    ],
)
def test_arguments_without_classes(words, left):
    assert without_classes(words) == left


def test_a_script_elsewhere_finds_the_current_folder(tmp_path):
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "script.py").write_text("from cifar_lightning.cli.main import main\nmain()")
    flags = ["fit", "--model=mine.Bare", "--data=mine.Noise", ONE, *QUIET]
    command = [sys.executable, str(scripts / "script.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert newest("last.ckpt").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--model.class_path=5"], "wrong class: expected a class_path"),
        (["test", "--config={evaluation: {ensemble: 5}}"], "ensemble"),
    ],
)
def test_values_of_another_type_end_in_one_line(fail, arguments, said):
    assert said in fail(*arguments, *QUIET)
