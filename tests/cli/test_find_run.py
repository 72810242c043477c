"""A run is found by what it is: by the content of the configs that it was started with."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL

from cifar_lightning.cli.find_run import MARK, SAVED_CONFIG, find_in_newest_run, fingerprint

FLAGS = [*SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=1x8"]
pytestmark = pytest.mark.usefixtures("undrawn")


def make_run(name, config, checkpoints=("best", "last"), age=0, root="runs"):
    """A run's folder as a training leaves it."""
    run = Path(root, name)
    (run / "checkpoints").mkdir(parents=True)
    for checkpoint in checkpoints:
        torch.save({"state_dict": {}, "hyper_parameters": {}}, run / "checkpoints" / f"{checkpoint}.ckpt")
    (run / SAVED_CONFIG).write_text(f"{MARK} {fingerprint([config])}\nname: {name}\n")
    os.utime(run / SAVED_CONFIG, (1000 - age, 1000 - age))
    return run


def find(named, *configs, root="runs"):
    return find_in_newest_run(named, configs, Path(root)).parent.parent


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a: 1\nb: 2", "# a comment\nb: 2\na: 1"),
        ("lr: 7.0e-4", "lr: 0.0007"),
        ("a: {b: [1, 2]}", "a:\n  b:\n  - 1\n  - 2"),
    ],
)
def test_the_same_content_has_the_same_fingerprint(one, other):
    assert fingerprint([one]) == fingerprint([other])


@pytest.mark.parametrize(("one", "other"), [(["a: 1"], ["a: 2"]), (["a: 1"], []), (["a: 1", "b: 1"], ["b: 1", "a: 1"])])
def test_other_contents_have_others(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_an_empty_config_says_nothing():
    Path("empty.yaml").write_text("# nothing\n")
    assert fingerprint(["empty.yaml"]) == fingerprint([])


def test_the_newest_training_of_the_content_is_found_whatever_its_name():
    Path("x").mkdir()
    Path("x/a.yaml").write_text("lr: 1")
    Path("a.yaml").write_text("lr: 2")
    old, new = make_run("a/1", "lr: 1", age=2), make_run("b/2", "{lr: 1}", age=1)
    make_run("a/3", "lr: 2")
    assert find("best", "x/a.yaml") == new
    (new / "checkpoints" / "best.ckpt").unlink()  # an older one must not stand in for it
    with pytest.raises(ValueError, match=r"no best checkpoint: expected runs/b/2/checkpoints/best\.ckpt"):
        find("best", "x/a.yaml")
    assert find("last", "x/a.yaml") == new
    (new / "checkpoints" / "last.ckpt").unlink()  # now it has not trained at all
    assert find("best", "x/a.yaml") == old


def test_a_saved_config_means_its_run_or_a_repetition():
    run, other = make_run("a/1", "lr: 1", age=3), make_run("a/2", "lr: 1", age=2)
    saved = str(run / SAVED_CONFIG)
    assert find("best", saved) == run
    assert find("best", str(other / SAVED_CONFIG)) == other
    repeated = make_run("a/3", saved, age=1)
    assert find("best", saved) == repeated


def test_nothing_of_that_content():
    make_run("a/1", "lr: 1")
    with pytest.raises(ValueError, match=r"got none with that content \(the newest run of other configs is runs/a/1"):
        find("best", "lr: 2")
    with pytest.raises(ValueError, match="expected a run of no config in nowhere, got none"):
        find("best", root="nowhere")


def sizes_of(run, *args):
    """The hidden sizes of the network that `test` takes."""
    before = set(Path().rglob("test_*/config.yaml"))
    run("test", *args, "--trainer.enable_progress_bar=false")
    (saved,) = set(Path().rglob("test_*/config.yaml")) - before
    return yaml.safe_load(saved.read_text())["model"]["hidden_sizes"]


def test_two_runs_repeated_by_their_saved_configs(run):
    for name, size in (("a", 8), ("b", 9)):
        Path(f"{name}.yaml").write_text(f"model: {{hidden_sizes: 1x{size}}}")
        run("fit", f"--config={name}.yaml", *SMALL, "--trainer.max_epochs=1")
    saved = {name: str(next(Path("runs", name).glob("*/config.yaml"))) for name in "ab"}
    for name in "ab":
        run("fit", f"--config={saved[name]}")
    assert len(list(Path("runs/a").iterdir())) == 2  # a repetition stands beside what it repeats
    assert sizes_of(run, f"--config={saved['a']}", "--ckpt_path=best") == [8]
    assert sizes_of(run, f"--config={saved['b']}", "--ckpt_path=last") == [9]


def test_a_config_finds_its_run_with_a_flag_and_its_resumed_run(run):
    Path("a.yaml").write_text("model: {lr: 0.1}")
    Path("other").mkdir()
    Path("other/a.yaml").write_text("model: {lr: 0.2}")
    run("fit", "--config=a.yaml", *FLAGS, "--model.hidden_sizes=1x9")
    last = next(Path().rglob("last.ckpt"))
    run("fit", "--config=other/a.yaml", *FLAGS)
    assert sizes_of(run, "--config=a.yaml", "--ckpt_path=best") == [9]
    assert sizes_of(run, "--config=other/a.yaml", "--ckpt_path=best") == [8]
    run("fit", f"--ckpt_path={last}", "--trainer.max_epochs=2")
    run("test", "--config=a.yaml", "--ckpt_path=last", "--trainer.default_root_dir=runs")
    newest = find("last", "a.yaml")
    assert torch.load(newest / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_a_run_without_a_config_and_one_with_its_config_on_the_command_line(run):
    run("fit", *FLAGS)
    run("fit", "--config={model: {lr: 0.1}}", *FLAGS, "--model.hidden_sizes=1x9")
    assert sizes_of(run, "--ckpt_path=best") == [8]
    assert sizes_of(run, "--config={model: {lr: 0.1}}", "--ckpt_path=best") == [9]


def test_a_config_before_the_subcommand(run):
    Path("g.yaml").write_text("fit: {model: {lr: 0.3, activation: elu}}")
    Path("h.yaml").write_text("model: {lr: 0.2}")
    run("--config", "g.yaml", "fit", "--config", "h.yaml", *FLAGS)
    saved = yaml.safe_load(next(Path("runs/g+h").glob("*/config.yaml")).read_text())["model"]
    assert (saved["lr"], saved["activation"]) == (0.2, "elu")


def test_a_dry_run_writes_nothing(run, fail):
    for flag in ("--trainer.fast_dev_run=true", "--trainer.fast_dev_run=2"):
        for callback in (None, "SignalPicture", "LRFinder", "SchedulePlot", "ModelCheckpoint"):
            more = [f"--trainer.callbacks+={callback}"] if callback else []
            more += ["--trainer.callbacks.num_steps=10", "--trainer.callbacks.apply=false"] * (callback == "LRFinder")
            run("fit", *FLAGS, flag, *more)
            assert not list(Path().iterdir())
    run("fit", *FLAGS)
    before = sorted(Path().rglob("*"))
    assert "no last checkpoint" in fail("fit", "--config={seed_everything: 1}", "--ckpt_path=last")
    for subcommand in ("validate", "test", "predict"):
        run(subcommand, "--ckpt_path=last", "--trainer.fast_dev_run=true")
    run("validate", "--ckpt_path=last", "--trainer.fast_dev_run=true", "--evaluation.calibrate=true")
    assert sorted(Path().rglob("*")) == before


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before():
    run = make_run("a/1", "lr: 1")
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"wrong checkpoint runs/a/1/checkpoints/last\.ckpt.*Using the one before it"):
        assert find_in_newest_run("last", ["lr: 1"], Path("runs")) == best
    assert find_in_newest_run("best", ["lr: 1"], Path("runs")) == best
    best.write_bytes(b"")
    with pytest.raises(ValueError, match="got only damaged ones"), pytest.warns(UserWarning, match="wrong"):
        find_in_newest_run("last", ["lr: 1"], Path("runs"))


def test_a_training_that_was_killed_before_its_last_checkpoint_gives_way_to_the_one_before():
    old = make_run("a/1", "lr: 1", age=1)
    new = make_run("a/2", "lr: 1", ["best"])  # which a resumed training takes along
    assert find("best", "lr: 1") == new
    with pytest.warns(UserWarning, match=r"runs/a/2 ended before it wrote a last\.ckpt: using runs/a/1/"):
        assert find("last", "lr: 1") == old
