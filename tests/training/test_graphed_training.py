"""Trainings by CUDA graphs; on a CPU a direct call takes the place of each, and all else is the same code."""

import csv

import pytest
import torch
from conftest import ACCELERATOR, ROOT, SMALL
from lightning.pytorch import Callback, Trainer

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.obstacles import find_obstacle
from cifar_lightning.training.stacked_classifier import StackedClassifier

BASE = [
    f"--config={ROOT}/configs/one_cycle.yaml",
    *SMALL,
    "--data.batch_size=16",  # 15 batches an epoch
    "--model.hidden_sizes=3x20",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=3",
]
#: Roundings grow ten-thousandfold in these 45 steps.
DOUBLE = ["--trainer.precision=64-true"]
EVERY_10 = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=10",
            "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]  # fmt: skip


def outcome(folder):
    """The last checkpoint, each checkpoint's name, and the rows of the log."""
    last = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    return last, sorted(path.name for path in folder.rglob("*.ckpt")), rows


@pytest.fixture(autouse=True)
def _graphed(monkeypatch):
    """Make the steps as on a GPU; on a CPU a direct call takes the place of a graph."""
    for module in ("choice", "obstacles"):
        monkeypatch.setattr(f"cifar_lightning.training.{module}.makes_graphs", lambda device: True)


def check_close(ours, theirs):
    (ours, our_files, our_rows), (theirs, their_files, their_rows) = ours, theirs
    assert our_files == their_files
    assert (ours["global_step"], ours["epoch"]) == (theirs["global_step"], theirs["epoch"])
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-8, atol=1e-9)
    assert [list(row) for row in our_rows] == [list(row) for row in their_rows]
    for our_row, their_row in zip(our_rows, their_rows, strict=True):
        for name, value in their_row.items():
            assert (our_row[name] == "") == (value == ""), name
            assert value == "" or float(our_row[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--trainer.max_steps=31"],
        ["--trainer.val_check_interval=4"],
        EVERY_10,
        ["--trainer.gradient_clip_val=0.01"],
        ["--model.max_norm=0.5"],
        ["--model.l1=0.001", "--model.optimizer=NAdam", "--model.lr=0.001", "--model.schedule=Constant"],
        ["--model.normalization=batch", "--model.optimizer=NAdam", "--model.schedule=Performance"],
        ["--model.optimizer=Adam", "--model.max_norm=0.5"],
    ],
    ids=lambda flags: " ".join(flag.split("=", 1)[0].split(".")[-1] + "=" + flag.split("=", 1)[1] for flag in flags),
)
def test_graphs_train_as_plain_steps_do(run, tmp_path, flags):
    results = []
    for compile, words in (("never", "plain"), ("always", "CUDA graphs, 50 at once")):
        root = tmp_path / compile
        said = run("fit", *BASE, *DOUBLE, f"--execution.compile={compile}", *flags,
                   f"--trainer.default_root_dir={root}")  # fmt: skip
        assert f"Training steps: {words}, 1 thread" in said
        assert "Compiling" not in said
        results.append(outcome(root))
    check_close(*results)


@pytest.mark.filterwarnings("ignore")
def test_a_training_by_graphs_resumes_to_the_last_bit(run, tmp_path):
    always = ["--execution.compile=always", "--model.dropout=alpha", "--model.optimizer=NAdam", "--model.lr=0.001",
              "--model.schedule=Constant"]  # fmt: skip
    for folder, flags in (("whole", []), ("parts", ["--trainer.max_steps=20"])):  # in the midst of the second epoch
        run("fit", *BASE, *always, *flags, f"--trainer.default_root_dir={tmp_path / folder}")
    checkpoint = next((tmp_path / "parts").rglob("last.ckpt"))
    said = run("fit", *BASE, *always, f"--ckpt_path={checkpoint}",
               f"--trainer.default_root_dir={tmp_path / 'resumed'}")  # fmt: skip
    assert "Training steps: CUDA graphs, 50 at once, 1 thread (as before)" in said
    ours, theirs = (outcome(tmp_path / folder)[0] for folder in ("resumed", "whole"))
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", ["auto", "always"])
@pytest.mark.parametrize("augmented", [False, True])
def test_images_are_moved_to_the_device_of_the_graphs(augmented, compile):
    module = MLPClassifier(hidden_sizes="1x8")
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, flip=augmented)
    module.executor = Executor(compile)
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(trainer.train_dataloader.dataset.device)

    trainer = Trainer(**ACCELERATOR, max_steps=3, callbacks=[Look()], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, data)
    assert seen == [trainer.strategy.root_device]
    assert data.train_dataloader().dataset.device is None  # there are no steps any more


def test_images_that_would_fill_the_gpu_stay_where_they_are(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 16 * 2**30))
    executor = Executor()
    assert executor.device_for(2**30) is None  # no training by graphs
    executor._device_of_images = torch.device("cuda", 0)
    assert executor.device_for(4 * 2**30) == torch.device("cuda", 0)
    assert capsys.readouterr().out == ""
    assert executor.device_for(5 * 2**30) is None
    assert "Training images: in the computer's memory, since 5.0 GiB would fill" in capsys.readouterr().out


@pytest.mark.parametrize("compile", ["never", "always"])
def test_what_a_progress_bar_shows_is_read_from_the_gpu_once(monkeypatch, compile):
    """Lightning reads it again after each batch; a Python number would be copied there and back."""
    module, logged = MLPClassifier(hidden_sizes="1x8"), []
    module.executor = Executor(compile)
    monkeypatch.setattr(module, "log_dict", lambda values, **options: logged.append((values, options)))
    trainer = Trainer(**ACCELERATOR, max_steps=6, log_every_n_steps=2, limit_val_batches=0, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60))
    shown = [values for values, options in logged if options.get("prog_bar")]
    assert len(shown) == 3
    assert all(value.device.type == "cpu" for values in shown for value in values.values())


class Own(torch.nn.ReLU):
    def forward(self, x):
        return x.clamp(min=0)


@pytest.mark.filterwarnings("ignore")
def test_by_default_a_gpu_trains_by_graphs(run):
    assert "Training steps: CUDA graphs, 50 at once, 1 thread" in run("fit", *BASE, "--trainer.max_epochs=1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("compile", "graphs"), [("auto", False), ("always", True)])
def test_layers_of_other_people_are_captured_only_on_request(capsys, compile, graphs):
    module = MLPClassifier(hidden_sizes="1x8", activation=f"{__name__}.Own")
    module.executor = Executor(compile)
    trainer = Trainer(**ACCELERATOR, max_steps=3, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60))
    assert ("CUDA graphs" in module.executor.execution.reason) != graphs
    reason = "plain, 1 thread (Own may not work in CUDA graphs; --execution.compile always tries it)"
    assert (reason in capsys.readouterr().out) != graphs


@pytest.mark.usefixtures("uncompiled")
def test_a_gpu_that_is_none_of_cudas_gets_no_compiled_steps(monkeypatch):
    trainer, module = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), MLPClassifier()
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("mps"))
    assert find_obstacle(trainer, module) == "a device of type mps"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", [[1, 1, 1], [1, 2, 3]], ids=["shared batches", "batches of their own"])
def test_a_stack_by_graphs_trains_as_a_plain_one_does(seeds):
    results = []
    for compile in ("never", "always"):
        copies = []
        for lr, seed in zip((0.001, 0.01, 0.1), seeds, strict=True):
            torch.manual_seed(seed)
            classifier = MLPClassifier(lr=lr, optimizer="SGD", hidden_sizes=[20, 20], max_norm=1.0, activation="elu")
            copies.append(Copy(f"lr={lr}", classifier, seed))
        base = MLPClassifier(hidden_sizes=[20, 20])
        base.executor = Executor(compile)
        stack = StackedClassifier(base, copies)
        data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=20)
        trainer = Trainer(**ACCELERATOR, precision="64-true", max_epochs=3, logger=False, enable_checkpointing=False,
                          enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5)  # fmt: skip
        trainer.fit(stack, data)
        assert stack.executor.execution.graphs == (compile == "always")
        results.append((stack.state_dict(), {name: value.item() for name, value in trainer.callback_metrics.items()}))
    (plain_state, plain_metrics), (state, metrics) = results
    for name, value in plain_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-9)
    assert metrics == pytest.approx(plain_metrics, rel=1e-5)
