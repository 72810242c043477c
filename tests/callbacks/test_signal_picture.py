import csv
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image

from cifar_lightning import CIFAR10DataModule, MLPClassifier, measure_signals
from cifar_lightning.callbacks.signal_picture import QUANTITIES, SignalPicture

pytestmark = pytest.mark.usefixtures("undrawn")

PICTURE = "--trainer.callbacks+=SignalPicture"
BASE = [
    f"--config={ROOT}/configs/alpha_dropout.yaml",
    *SMALL,
    "--data.batch_size=16",  # 15 batches an epoch
    "--model.hidden_sizes=3x20",
    "--model.dropout_position=input_and_all",
    "--trainer.max_epochs=3",
]


def rows(folder):
    with next(Path(folder).rglob("signals.csv")).open() as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(next(Path(folder).rglob("last.ckpt")), weights_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("compile", ["never", "always"])
@pytest.mark.parametrize("network", [[], ["--model.normalization=batch", "--model.norm_input=true"]])
def test_a_training_is_bitwise_the_same_with_it(run, tmp_path, compile, network):
    flags = [*BASE, *network, f"--execution.compile={compile}", "--execution.steps=7"]
    run("fit", *flags, f"--trainer.default_root_dir={tmp_path}/without")
    said = run("fit", *flags, f"--trainer.default_root_dir={tmp_path}/with", PICTURE)
    assert f"Training steps: {'compiled, 7 at once' if compile == 'always' else 'plain'}" in said
    theirs, ours = weights("without"), weights("with")
    for name, value in theirs["state_dict"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(ours["state_dict"][name], value), name
    assert torch.equal(ours["random_generators"][0]["torch"], theirs["random_generators"][0]["torch"])


def test_a_line_for_each_layer_and_epoch(run):
    run("fit", *BASE, PICTURE, "--trainer.max_epochs=5", "--trainer.callbacks.every_n_epochs=2")
    written = rows("runs")
    assert list(written[0]) == ["epoch", "layer", *QUANTITIES]
    # The input, three hidden layers, the logits.
    assert [(row["epoch"], row["layer"]) for row in written] == [(e, str(n)) for e in "024" for n in range(5)]
    first, last = written[1], written[-4]
    assert first["activation_std"] != last["activation_std"]
    with Image.open(next(Path().rglob("signals.png"))) as picture:
        assert min(picture.size) > 500


def test_the_first_training_images_are_measured():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=16)
    model = MLPClassifier(hidden_sizes=[20, 20], dropout="none")
    picture = SignalPicture(num_images=100, stop=True)
    Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[picture]).fit(model, data)
    images, labels = data.images.train_images[60:160], data.images.train_labels[60:160]  # val_split is first
    network = model.network
    signals = measure_signals(network, network.hidden, model.standardize(images), labels)
    for row, signal in zip(picture.rows[1:3], signals, strict=True):
        assert {name: row[name] for name in QUANTITIES} == pytest.approx(vars(signal), rel=1e-6)
    # A standardized input; and an example's gradient with respect to its logits is p - y, whose sum is 0.
    assert picture.rows[0]["activation_mean"] == pytest.approx(0, abs=0.1)
    assert picture.rows[-1]["gradient_mean"] == pytest.approx(0, abs=1e-6)


def test_it_can_stop_before_the_training(run):
    printed = run("fit", *BASE, PICTURE, "--trainer.callbacks.stop=true")
    for word in ("input ", "1 ", "2 ", "3 ", "logits ", "activation std", "signals.png"):
        assert word in printed
    assert "Training steps" not in printed
    assert {row["epoch"] for row in rows("runs")} == {"0"}
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_draws_the_whole(run, tmp_path):
    saves = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=20",
             "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=middle"]  # fmt: skip
    run("fit", *BASE, *saves, PICTURE, f"--trainer.default_root_dir={tmp_path}/whole")
    run("fit", *BASE, PICTURE, "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}/two")
    for name, checkpoint in {"middle": "whole/**/middle.ckpt", "end": "two/**/last.ckpt"}.items():
        path = next(tmp_path.glob(checkpoint))
        run("fit", *BASE, PICTURE, f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path}/{name}")
        assert rows(name) == rows("whole")


def test_what_can_not_be_measured(fail, run):
    assert "every_n_epochs must be at least 1, got 0" in fail(
        "fit", *BASE, PICTURE, "--trainer.callbacks.every_n_epochs=0"
    )
    run("fit", *BASE, "--trainer.max_epochs=1")
    last = f"--ckpt_path={next(Path().rglob('last.ckpt'))}"
    assert "needs a new run: expected no --ckpt_path" in fail(
        "fit", *BASE, PICTURE, "--trainer.callbacks.stop=true", last
    )
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[SignalPicture()])
    with pytest.raises(ValueError, match="needs an MLPClassifier and a CIFAR10DataModule .*, got BoringModel"):
        trainer.fit(BoringModel())
