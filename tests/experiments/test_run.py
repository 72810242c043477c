import json
import math
import re
import signal
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from conftest import make_result as result
from lightning.pytorch import Callback, LightningModule

from cifar_lightning.experiments.run import Run, interruptible

TINY = ("--model.hidden_sizes=2x10", "--trainer.max_epochs=3", *SMALL)


def make(*arguments, out="out"):
    return Run("a", "a, seed 1", Path(out), "a/seed_1", ("--config=a.yaml", *arguments))


def begin(*arguments, out="out"):
    """Prepare a run, and leave what a training leaves."""
    run = make(*arguments, out=out)
    run.prepare()
    run.log.touch()


@pytest.fixture(autouse=True)
def _config():
    Path("a.yaml").write_text("model: {lr: 0.01}")


# -------------------------------------------------------------------------------------------------------- liveness


def test_a_run_is_alive_while_its_lock_is_held():
    run = make()
    assert not run.is_alive()
    run.prepare()
    with run.lock:
        assert run.is_alive()
    assert not run.is_alive()


# ---------------------------------------------------------------------------------------------------- begun before


def test_a_run_goes_on_with_the_same_recipe_only():
    begin("--model.lr=1")
    make("--model.lr=1").prepare()
    Path("a.yaml").write_text("model:\n  lr: 0.01  # the same")
    make("--model.lr=1").prepare()
    with pytest.raises(ValueError, match="the options of a, seed 1 have changed since it was run: expected those in"):
        make("--model.lr=2").prepare()
    Path("a.yaml").write_text("model: {lr: 0.02}")
    with pytest.raises(ValueError, match="have changed since it was run"):
        make("--model.lr=1").prepare()


FLAGS = ("--model.lr=1e-3", "--data.classes", "cat", "dog", "--trainer.callbacks+=A", "--trainer.callbacks.at=2")
SAME = ("--data.classes=[cat, dog]", "--trainer.callbacks+=A", "--model.lr", "0.001", "--trainer.callbacks.at", "2")


def test_the_order_and_the_spelling_of_options_do_not_matter():
    begin(*FLAGS)
    make(*SAME).prepare()
    begun = [word for name in "AB" for word in (f"--trainer.callbacks+={name}", f"--trainer.callbacks.at={name}")]
    begin(*begun, out="lists")
    with pytest.raises(ValueError, match="have changed since it was run"):
        make(*sorted(begun), out="lists").prepare()  # the second value would be that of another callback


def test_a_run_says_which_options_have_changed():
    begin(*FLAGS)
    Path("a.yaml").write_text("model: {lr: 0.02}")
    with pytest.raises(ValueError, match=r"; got no --data.classes instead of .*, another config$") as error:
        make("--model.lr", "0.01", "--model.l2", "1", *FLAGS[4:]).prepare()
    assert "--model.lr=0.01 instead of --model.lr=0.001, another" in str(error.value)
    assert "--model.l2=1 instead of none, " in str(error.value)
    assert "callbacks" not in str(error.value)


@pytest.mark.parametrize("left", ["log.txt", "checkpoints", "result.json"])
def test_the_options_of_a_run_that_never_began_do_not_bind(left):
    make("--model.lr=1").prepare()
    make("--model.lr=2").prepare()
    result().save(make().folder / left)
    make("--model.lr=2").check()
    with pytest.raises(ValueError, match="got --model.lr=3 instead of --model.lr=2$"):
        make("--model.lr=3").check()


def test_a_run_may_be_moved():
    begin("--data.data_dir=x", "--trainer.devices", "1", "--model.lr", "1")
    make("--data.data_dir", "1", "--model.lr", "1").prepare()
    with pytest.raises(ValueError, match="have changed since it was run"):
        make("--data.data_dir=x", "--model.lr", "2").prepare()


@pytest.mark.parametrize("content", [b"", b'{"flags": [', b"\xff"])
def test_a_broken_recipe_sets_the_folder_aside(capsys, content):
    run = make()
    for number in (1, 2):
        run.prepare()
        result().save(run.result_file)
        (run.folder / "recipe.json").write_bytes(content)
        run.prepare()
        assert run.result() is None
        aside = Path(f"out/a/seed_1.broken_{number}").absolute()
        assert (aside / "result.json").exists()
        printed = capsys.readouterr().out
        assert (
            f"recipe.json is broken. The run does not count as finished and starts again; its old files are in {aside}"
            in printed
        )


def test_a_broken_result_does_not_count(capsys):
    run = make()
    run.prepare()
    result().save(run.result_file)
    run.prepare()
    assert run.result() == result()
    run.result_file.write_bytes(run.result_file.read_bytes()[:50])
    run.prepare()
    assert run.result() is None
    assert re.search(r"broken result .*result.json: .*The run does not count as finished", capsys.readouterr().out)


def test_a_stopped_run_goes_on_from_the_newest_checkpoint_that_can_be_read(capsys):
    run = make("--data.data_dir", "x", "--model.lr=1")
    assert run.command() == ["fit", "--config=a.yaml", "--data.data_dir", "x", "--model.lr=1"]
    checkpoints = run.folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (run.folder / "config.yaml").touch()
    for name in ("last", "best"):
        torch.save({"state_dict": {}, "hyper_parameters": {}}, checkpoints / f"{name}.ckpt")
    assert run.command() == ["fit", f"--ckpt_path={checkpoints}/last.ckpt", "--data.data_dir=x"]
    for name, then in (("last", f"--ckpt_path={checkpoints}/best.ckpt"), ("best", "--config=a.yaml")):
        path = checkpoints / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:100])
        assert run.command()[1] == then
        assert f"wrong checkpoint {path}" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- training


class Stop(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 2 and index == 3:
            raise KeyboardInterrupt


def without_seconds(some):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in some.rows]


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_that_was_stopped_comes_to_the_same(undrawn, moved):
    arguments = (*TINY, "--seed_everything=3", "--trainer.max_epochs=4", "--model.dropout=alpha", "--model.lr=0.1")
    whole, stopped = make(*arguments, out="whole"), make(*arguments, out="stopped")
    for run in (whole, stopped):
        run.prepare()
    with pytest.raises(SystemExit):
        stopped.train([Stop()])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning has taken away
    if moved:
        Path("stopped").rename("moved")
        stopped = make(*arguments, out="moved")
    first, second = whole.train(test=True), stopped.train(test=True)
    assert first.best["epoch"] == 2  # before the stop
    assert without_seconds(first) == without_seconds(second)
    assert first.line().keys() == second.line().keys()
    assert (first.test_loss, first.test_accuracy) == (second.test_loss, second.test_accuracy)
    assert math.isfinite(first.test_loss)
    assert (second.name, second.seed, second.folder) == ("a", 3, "a/seed_1")
    # Lightning's logger would have deleted the first table.
    assert {path.name for path in stopped.folder.glob("metrics*.csv")} == {"metrics.csv", "metrics_1.csv"}


@pytest.mark.parametrize("logger", ["false", "{class_path: CSVLogger, init_args: {save_dir: logs}}"])
def test_a_run_with_any_logger_and_validations_now_and_then(logger):
    run = make(*TINY, "--trainer.check_val_every_n_epoch=2", f"--trainer.logger={logger}")
    run.prepare()
    came_to = run.train()
    assert [row["epoch"] for row in came_to.validated] == [2]
    assert len(came_to.rows) == 3
    assert math.isnan(came_to.test_loss)
    assert (run.folder / "learning_curves.png").exists()
    assert json.loads((run.folder / "recipe.json").read_text())["configs"] == [{"model": {"lr": 0.01}}]


def test_no_validation_is_no_result(undrawn):
    run = make(*TINY, "--trainer.limit_val_batches=0")
    run.prepare()
    with pytest.raises(ValueError, match="the run has no result: expected epochs with a validation loss"):
        run.train()


def test_a_run_that_fails_early_keeps_its_folder():
    run = make("--model.lr=-1")
    run.prepare()
    with pytest.raises(ValueError, match="lr must be"):
        run.train()
    assert (run.folder / "recipe.json").exists()


class Untested(LightningModule):
    """A module of a user's, with no hyperparameters, no accuracy and no test."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3072, 10)

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0].float().flatten(1) / 255), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.layer(batch[0].float().flatten(1) / 255), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_users_module_has_a_result_and_is_resumed():
    Path("a.yaml").write_text("trainer: {max_epochs: 2}")
    run = make(f"--model={__name__}.Untested", *SMALL)
    run.prepare()
    result = run.train(test=True)
    assert len(result.rows) == 2
    assert math.isnan(result.test_accuracy)
    assert run.command()[1].endswith("out/a/seed_1/checkpoints/last.ckpt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptible(capsys, number):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, interruptible():
        signal.raise_signal(number)
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"
    assert signal.getsignal(signal.SIGTERM) == before
