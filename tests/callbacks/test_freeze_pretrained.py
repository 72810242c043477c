from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL
from lightning.pytorch import Callback, Trainer

from cifar_lightning import CIFAR10DataModule, FreezePretrained, MLPClassifier, Pretrained

pytestmark = pytest.mark.usefixtures("undrawn")

LAYERS = ["--model.hidden_sizes=[20,10]", "--model.activation=elu", "--model.normalization=batch",
          "--model.norm_input=true", "--model.max_norm=0.9", "--model.optimizer=SGD", "--model.optimizer.momentum=0.9",
          "--model.optimizer.weight_decay=0.01", "--model.lr=0.1"]  # fmt: skip
TASK_A = [*SMALL, *LAYERS, "--model.num_classes=8", "--data.classes", *"01234789", "--trainer.max_epochs=2"]
TASK_B = [*SMALL, *LAYERS, "--model.num_classes=2", "--data.classes", "5", "6", "--data.train_size=40",
          "--data.batch_size=8", "--trainer.max_epochs=5",
          "--trainer.callbacks+=FreezePretrained", "--trainer.callbacks.epochs=2"]  # fmt: skip
EVERY_STEP = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1",
              "--trainer.callbacks.filename=step{step}", "--trainer.callbacks.every_n_train_steps=1"]  # fmt: skip
REUSED = ("network.input.", "network.hidden.", "standardize.")


def load(path):
    return torch.load(path, weights_only=True)


def state_at(folder, step):
    return load(next(folder.rglob(f"stepstep={step}.ckpt")))["state_dict"]


def same(ours, theirs, prefix=""):
    return {
        name: torch.equal(value, theirs[name])
        for name, value in ours.items()
        if isinstance(value, torch.Tensor) and name.startswith(prefix)
    }


@pytest.fixture
def task_a(run, tmp_path):
    """The pretrained network's file."""
    run("fit", *TASK_A, f"--trainer.default_root_dir={tmp_path / 'a'}")
    return next((tmp_path / "a").rglob("last.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_frozen_layers_do_not_move_and_then_all_do(run, tmp_path, task_a):
    # With weight decay, momentum, a norm constraint and batch norms, each of which would move what is not frozen.
    b = tmp_path / "b"
    said = run("fit", *TASK_B, *EVERY_STEP, f"--pretrained.checkpoint={task_a}", f"--trainer.default_root_dir={b}")
    assert "Training steps: plain, 1 thread (FreezePretrained)" in said
    source = load(task_a)["state_dict"]
    for step in (1, 10):  # the first and the last of the two frozen epochs
        state = state_at(b, step)
        assert all(same(state, source, REUSED).values()), step
        assert state["standardize.scaling_index"] == source["standardize.scaling_index"]
        assert not any(same(state, state_at(b, step + 1), "network.output.").values())
    moved = same(state_at(b, 11), source, "network.hidden.")
    assert not any(moved.values()), moved
    assert not torch.equal(
        state_at(b, 11)["network.input.norm.running_mean"], source["network.input.norm.running_mean"]
    )
    assert all(same(state_at(b, 25), source, "standardize.").values())


@pytest.mark.filterwarnings("ignore")
def test_a_resume_is_bitwise_equal_and_needs_no_pretrained_file(run, tmp_path, task_a):
    whole = tmp_path / "b"
    run("fit", *TASK_B, *EVERY_STEP, f"--pretrained.checkpoint={task_a}", f"--trainer.default_root_dir={whole}")
    task_a.unlink()
    expected = state_at(whole, 25)
    saved = yaml.safe_load(next(whole.rglob("config.yaml")).read_text())
    saved["pretrained"]["checkpoint"] = None
    Path("unnamed.yaml").write_text(yaml.safe_dump(saved))
    # Amid and after an epoch, frozen and not; by the run's own config, which names the file, and by another.
    for step, config in ((3, []), (5, []), (10, []), (13, []), (15, []), (3, ["--config=unnamed.yaml"])):
        middle = next(whole.rglob(f"stepstep={step}.ckpt"))
        resumed = tmp_path / f"{step}{len(config)}"
        run("fit", *config, f"--ckpt_path={middle}", f"--trainer.default_root_dir={resumed}")
        equal = same(state_at(resumed, 25), expected)
        assert all(equal.values()), (step, equal)


@pytest.mark.filterwarnings("ignore")
def test_the_command_line(run, fail, tmp_path, task_a):
    run("fit", *TASK_B, "--pretrained.checkpoint", "a/*/*/checkpoints/last.ckpt", "--pretrained.layers=1")
    (last,) = Path("runs").rglob("last.ckpt")
    config = last.parents[1] / "config.yaml"
    assert yaml.safe_load(config.read_text())["pretrained"]["checkpoint"] == str(task_a.relative_to(tmp_path))
    checkpoint = load(last)
    assert checkpoint["callbacks"]["Pretrained"]["reused"] == 1
    assert not {"pretrained", "pretrained_layers"} & set(checkpoint["hyper_parameters"])
    best = task_a.with_name("best.ckpt")
    for flag, expected in ((f"checkpoint={best}", "'a/"), ("layers=2", "1")):
        message = fail("fit", f"--ckpt_path={last}", f"--pretrained.{flag}")
        assert f"--pretrained.{flag.partition('=')[0]} contradicts the checkpoint: expected {expected}" in message
    task_a.unlink()
    assert "deterministic" in run("test", f"--config={config}", f"--ckpt_path={last}")
    assert MLPClassifier.load_from_checkpoint(last, weights_only=True).classes == ["rows", "columns"]
    message = fail("test", f"--ckpt_path={last}", f"--pretrained.checkpoint={best}")
    assert "--pretrained.checkpoint has no effect here: it works with fit, got test" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pretrained.checkpoint=x.ckpt"], "no such checkpoint: expected a file, got 'x.ckpt'"),
        (
            ["--pretrained.checkpoint=y.ckpt"],
            "wrong checkpoint y.ckpt: expected the checkpoint of an MLPClassifier, got",
        ),
        (
            ["--pretrained.layers=1"],
            "pretrained.layers needs pretrained.checkpoint too, got only 1",
        ),
        (
            [],
            "nothing to freeze: expected reused layers, from --pretrained.checkpoint FILE",
        ),
        (["--trainer.callbacks.epochs=0"], "epochs must be at least 1, got 0"),
    ],
)
def test_mistakes(fail, flags, message):
    Path("y.ckpt").write_bytes(b"no checkpoint")
    assert message in fail("fit", *TASK_B, *flags)


@pytest.mark.filterwarnings("ignore")
def test_another_architecture_or_scaling_is_refused(fail, task_a):
    flags = [*TASK_B, f"--pretrained.checkpoint={task_a}"]
    assert "hidden layer 2 differs from the pretrained one: expected Linear" in fail(
        "fit", *flags, "--model.hidden_sizes=[20, 11]"
    )
    assert "contradicting scalings: expected 'feature'" in fail("fit", *flags, "--data.scaling=unit")


@pytest.mark.filterwarnings("ignore")
def test_the_config(run, tmp_path):
    enough = ["--data.synthetic_size=2000"]  # for 200 training images of two classes
    run("fit", f"--config={ROOT}/configs/eight_classes.yaml", *SMALL, "--trainer.max_epochs=1")
    run("fit", f"--config={ROOT}/configs/two_classes_pretrained.yaml", *SMALL, *enough,
        "--pretrained.checkpoint=runs/eight_classes/*/checkpoints/best.ckpt")  # fmt: skip
    source = load(next(Path("runs/eight_classes").rglob("best.ckpt")))["state_dict"]
    checkpoint = load(next(Path("runs/two_classes_pretrained").rglob("last.ckpt")))
    assert checkpoint["callbacks"]["Pretrained"]["reused"] == 5
    assert checkpoint["datamodule_hyper_parameters"]["data_set"] == "synthetic (rows, columns)"
    assert all(same(checkpoint["state_dict"], source, "standardize.").values())


# ------------------------------------------------------------------------------------------ without the command line


def data(classes, **options):
    return CIFAR10DataModule(
        **{"source": "synthetic", "synthetic_size": 300, "val_size": 60, "classes": classes} | options
    )


def trainer(*callbacks, **options):
    return Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | options,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip


class Watch(Callback):
    """Note what is trained and in what mode at each epoch's last batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            layer = pl_module.network.hidden[0]
            self.seen.append((layer.linear.weight.requires_grad, layer.norm.training))


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_reused_once_and_a_frozen_batch_norm_evaluates(tmp_path):
    options = {"hidden_sizes": [6, 5], "normalization": "batch"}
    first = MLPClassifier(num_classes=3, **options)
    run = trainer()
    run.fit(first, data([0, 1, 2]))
    path = tmp_path / "first.ckpt"
    run.save_checkpoint(path)
    model, watch, reuse = MLPClassifier(num_classes=2, **options), Watch(), Pretrained(str(path))
    trainer(reuse, FreezePretrained(epochs=1), watch, max_epochs=3).fit(model, data(["ring", "rows"]))
    assert watch.seen == [(False, False), (True, True), (True, True)]
    assert torch.equal(model.standardize.mean, first.standardize.mean)
    before = model.network.hidden[0].linear.weight.clone()
    trainer(reuse, FreezePretrained(), max_epochs=1).fit(model, data(["ring", "rows"]))
    assert torch.equal(model.network.hidden[0].linear.weight, before)  # frozen, and not read again


@pytest.mark.filterwarnings("ignore")
def test_each_network_that_a_callback_sees_reuses_the_layers(tmp_path):
    first, run, path = MLPClassifier(num_classes=3, hidden_sizes=[6, 5]), trainer(max_epochs=1), tmp_path / "first.ckpt"
    run.fit(first, data([0, 1, 2]))
    run.save_checkpoint(path)
    reuse = Pretrained(str(path))
    for _ in range(2):
        model = MLPClassifier(num_classes=2, hidden_sizes=[6, 5])
        trainer(reuse, FreezePretrained(), max_epochs=1).fit(model, data(["ring", "rows"]))
        for ours, theirs in zip(model.network.hidden.parameters(), first.network.hidden.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_was_resumed_is_not_reset_by_a_second_fit(tmp_path):
    first, run, path = MLPClassifier(num_classes=2, hidden_sizes=[6]), trainer(max_epochs=1), tmp_path / "first.ckpt"
    run.fit(first, data(["ring", "rows"]))
    run.save_checkpoint(path)
    run = trainer(Pretrained(str(path)), max_epochs=1)
    run.fit(MLPClassifier(num_classes=2, hidden_sizes=[6]), data(["ring", "rows"]))
    run.save_checkpoint(tmp_path / "second.ckpt")
    resumed, reuse = MLPClassifier(num_classes=2, hidden_sizes=[6]), Pretrained(str(path))
    run = trainer(reuse, max_epochs=2)
    run.fit(resumed, data(["ring", "rows"]), ckpt_path=tmp_path / "second.ckpt", weights_only=True)
    trained = resumed.network.hidden[0].linear.weight.clone()
    trainer(reuse, max_epochs=1, limit_train_batches=0).fit(resumed, data(["ring", "rows"]))
    assert torch.equal(resumed.network.hidden[0].linear.weight, trained)


def test_several_devices_are_refused():
    run = trainer(FreezePretrained())
    run.strategy.connect(MLPClassifier(hidden_sizes=[4]))
    run._accelerator_connector.strategy = type("Two", (), {"world_size": 2})()
    with pytest.raises(ValueError, match="FreezePretrained works on one device only, got 2"):
        run.callbacks[0].setup(run, None, "fit")
