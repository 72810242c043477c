import csv
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("grids", "search"))
SHORT = [*SMALL, "--trainer.max_epochs=2", "--model.hidden_sizes=3x20"]


def only(paths):
    (path,) = paths
    return path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(run, config):
    if config.stem in ("two_classes_pretrained", "distilled"):
        pytest.skip("needs a trained network: see test_freeze_pretrained.py and test_distillation.py")
    enough = ["--data.synthetic_size=2000"] if "two_classes" in config.stem else []  # for 200 of two classes
    printed = run("fit", f"--config={config}", *SMALL, *enough, "--trainer.max_epochs=1")
    assert "Training on synthetic" in printed
    folder = only(Path("runs", config.stem).iterdir())
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "hparams.yaml",
        "learning_curves.png",
        "checkpoints",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(folder.glob("events.out.tfevents.*"))
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["data_set"].startswith("synthetic")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top3_accuracy"} <= set(rows[0])
    assert [path.name for path in Path().iterdir()] == ["runs"]  # no litter


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_flat_and_gives_its_reasons(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# (" if config.parent.name == "configs" else "# ")  # the exercise's part
    for line in lines:
        if re.match(r" +(?!monitor)\w+: ", line):
            assert "  # " in line, line


def test_the_report(run):
    printed = run("fit", *SHORT)
    assert re.search(r"epoch +2 +train_loss [\d.]+ +train_accuracy [\d.]+ +val_loss", printed)
    for title in ("best ", "last epoch", "time", "written to"):
        assert title in printed


def test_runs_never_overwrite_each_other(run):
    for _ in range(3):
        run("fit", *SHORT, "--trainer.max_epochs=1")
    assert len(list(Path("runs/default").iterdir())) == 3


def test_configs_compose_and_flags_win(run):
    Path("a.yaml").write_text("model: {lr: 0.1, activation: elu, init: he_normal}")
    Path("b.yaml").write_text("model: {lr: 0.2}")
    run("fit", "--config=a.yaml", "--config=b.yaml", *SHORT, "--model.activation=relu")
    saved = yaml.safe_load(only(Path("runs/a+b").glob("*/config.yaml")).read_text())["model"]
    assert (saved["lr"], saved["activation"], saved["init"]) == (0.2, "relu", "he_normal")


def test_optimizer_by_name_with_its_arguments(run):
    run("fit", *SHORT, "--model.optimizer", "NAdam", "--model.optimizer.momentum_decay", "0", "--model.lr=0.002")
    group = torch.load(only(Path().rglob("last.ckpt")), weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert group["momentum_decay"] == 0
    assert group["lr"] == 0.002


@pytest.mark.parametrize(("flag", "sizes"), [("20x10", [10] * 20), ("[30, 10]", [30, 10])])
def test_hidden_sizes_are_stored_as_a_list(run, flag, sizes):
    run("fit", *SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes", flag)
    assert yaml.safe_load(only(Path().rglob("hparams.yaml")).read_text())["hidden_sizes"] == sizes


def test_evaluation_goes_by_the_checkpoint_alone(run):
    run("fit", *SHORT, "--data.scaling=unit", "--model.activation=relu")
    best = str(only(Path().rglob("best.ckpt")))
    quiet = ["--trainer.enable_progress_bar=false"]
    assert "deterministic" in run("validate", "--ckpt_path", best, *quiet)
    saved = only(Path("runs/default").glob("validate_*/config.yaml"))
    config = yaml.safe_load(saved.read_text())
    assert config["data"]["scaling"] == "unit"
    assert config["model"]["hidden_sizes"] == [20, 20, 20]
    assert "deterministic" in run("test", "--ckpt_path", best, *quiet)


def test_evaluation_refuses_another_scaling(run, fail):
    run("fit", *SHORT)
    best = str(only(Path().rglob("best.ckpt")))
    message = fail("test", "--ckpt_path", best, "--data.scaling=raw")
    assert "--data.scaling contradicts the checkpoint: expected 'feature'" in message
    assert "got 'raw'" in message


def test_evaluation_knows_its_classes_and_refuses_others(run, fail):
    run("fit", *SHORT, "--data.classes", "ring", "disc", "--model.num_classes=2")
    best = str(only(Path().rglob("best.ckpt")))
    assert "synthetic (ring, disc), test split" in run("test", "--ckpt_path", best)
    message = fail("test", "--ckpt_path", best, "--data.classes", "ring", "rows")
    assert "--data.classes contradicts the checkpoint: expected ['ring', 'disc']" in message
    run("predict", "--ckpt_path", best)
    with only(Path().rglob("predictions.csv")).open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"ring", "disc"}


def test_bf16(run):
    printed = run("fit", *SHORT, "--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed")
    assert "Training on synthetic" in printed
    assert yaml.safe_load(only(Path().rglob("config.yaml")).read_text())["trainer"]["precision"] == "bf16-mixed"


def test_early_stopping_from_a_config(run):
    printed = run("fit", f"--config={ROOT}/configs/selu.yaml", *SHORT, "--trainer.max_epochs=60", "--model.lr=0.003")
    assert printed.count("train_loss") < 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.activation=sellu"], "model.activation"),
        (["--model.dropout=alpha", "--model.dropout_p=1"], "must be in [0, 1), got 1"),
        (["--model.dropout=alpha", "--model.dropout_p=nan"], "--model.dropout_p: expected a number; got 'nan'"),
        (["--model.hidden_sizes=[]"], "hidden_sizes must be one or more positive integers"),
        (["--model.hidden_sizes=20by100"], "got '20by100'"),
        (["--model.optimizer=NAdm"], "did you mean 'NAdam'"),
        (
            ["--model.optimizer=SGD", "--model.optimizer.lr=1"],
            "lr must be set as the model's lr (--model.lr) only",
        ),
        (["--model.lr=-1"], "lr must be a positive number, got -1"),
        (["--model.schedule=Cycle"], "Cycle"),
        (["--model.nonsense=1"], "model.nonsense"),
        (["--data.classes=[disc,rinq]"], "did you mean 'ring'"),
        (["--data.val_size=300"], "val_size must be 1 to 299 images"),
        (["--data.source=cifar10", "--data.data_dir=nowhere"], "got 'nowhere' (no such directory)"),
        (["--data.source=cifar10", "--data.data_dir=.", "--data.download=false"], "no CIFAR-10 in '.'"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs"),
        (["--trainer.overfit_batches=2"], "use --trainer.limit_train_batches"),
    ],
)
def test_a_wrong_value_ends_in_one_message(fail, flags, message):
    assert message in fail("fit", *SMALL, "--trainer.max_epochs=1", *flags)
    assert not list(Path().rglob("*"))  # nothing half-written


def test_a_directory_that_is_a_file_or_read_only(fail, tmp_path):
    Path("taken").write_text("")
    assert "taken" in fail("fit", *SHORT, "--trainer.default_root_dir=taken")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x02]q\x00."])
def test_a_file_that_is_no_checkpoint(fail, content):
    Path("x.ckpt").write_bytes(content)
    assert "wrong checkpoint x.ckpt: expected the checkpoint of an MLPClassifier, got" in fail(
        "test", "--ckpt_path=x.ckpt"
    )


def test_an_evaluation_without_a_checkpoint(fail):
    assert "nothing to test: pass a trained network with --ckpt_path FILE" in fail("test", *SMALL)


def test_a_full_disk(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    code += f"from cifar_lightning.cli.main import main; main({['fit', *SHORT]!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


def test_help_lists_every_choice(capsys):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for choice in ("leaky_relu", "lecun_normal", "input_and_all", "stratified", "torch.optim.NAdam", "OneCycle"):
        assert choice in printed
    for refused in ("torch.optim.Muon", "torch.optim.SparseAdam", "torch.optim.Optimizer"):
        assert refused not in printed


def test_print_config_is_a_config(capfd, run):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit):
        main(["fit", *SHORT, "--model.lr=0.125", "--print_config"])
    Path("printed.yaml").write_text(capfd.readouterr().out)
    run("fit", "--config=printed.yaml")
    assert yaml.safe_load(only(Path().rglob("hparams.yaml")).read_text())["lr"] == 0.125


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    flags = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
    command = [sys.executable, "-m", "cifar_lightning", "fit", *SHORT, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.rglob("best.ckpt"))) == 1
    assert len(list((tmp_path / "runs" / "default").iterdir())) == 1
    assert torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["global_step"] == 2 * 15


def test_scripts_can_be_run():
    for script in (ROOT / "scripts").iterdir():
        assert script.stat().st_mode & stat.S_IXUSR, script


def test_flags_win_wherever_they_stand(run):
    Path("a.yaml").write_text("model: {lr: 0.1}")
    run("fit", "--model.lr=0.3", "--config", "a.yaml", *SHORT, "--trainer.max_epochs=1")
    assert yaml.safe_load(only(Path().rglob("hparams.yaml")).read_text())["lr"] == 0.3


def test_a_config_that_only_says_which_run_is_meant_contradicts_nothing(run):
    config = f"--config={ROOT}/configs/one_cycle.yaml"
    run("fit", config, *SHORT, "--model.lr=0.01", "--data.scaling=channel")
    run("test", config, "--ckpt_path=best", "--trainer.enable_progress_bar=false")
    assert len(list(Path().rglob("evaluation.csv"))) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.mc_samples=5"], "--evaluation.mc_samples has no effect here: it works with validate or test"),
        (
            ["--evaluation.calibrate=true"],
            "calibrate has no effect here: it works with validate, got fit",
        ),
        (["--data.images", "x.png"], "--data.images has no effect here: it works with predict, got fit"),
        (["--data.images"], "--data.images needs one or more values, got none"),
        (["--model.schedule=Exponential", "--model.schedule.s=0"], "s must be a positive number"),
        (
            ["--model.schedule=OneCycle", "--model.schedule.div_factor=-3"],
            "div_factor must be",
        ),
        ([f"--config={ROOT}/configs/selu.yaml", "--trainer.limit_val_batches=0"], "conditioned on metric"),
    ],
)
def test_what_can_not_act_is_refused(fail, flags, message):
    Path("x.png").touch()
    assert message in fail("fit", *SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=2x10", *flags)


def test_denormals_are_flushed_in_every_thread():
    code = (
        "import torch, cifar_lightning.cli.main as cli\n"
        "cli.CLI = lambda args: None\n"
        "cli.main([])\n"
        "torch.set_num_threads(2)\n"
        "tiny = torch.full((1 << 20,), 1e-40)\n"
        "assert not (tiny * 1.0).any()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
