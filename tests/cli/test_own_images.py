"""Your own images from the command line: the network follows the data, unless its options are given."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_lightning import load_network
from cifar_lightning.__main__ import run as run_command

pytestmark = pytest.mark.usefixtures("undrawn")
FLAGS = ["--data.source=folder", "--data.data_dir=mine", "--data.val_size=4", "--data.batch_size=4"]
FLAGS += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--model.hidden_sizes=1x4"]
FLAGS += ["--trainer.enable_model_summary=false", "--execution.compile=never", "--data.val_split=stratified"]


@pytest.fixture(autouse=True)
def _images():
    for k, name in enumerate(("cat", "dog", "eel")):
        Path("mine", name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (8, 6), 60 * k + i).save(f"mine/{name}/{i}.png")


def test_all_commands_follow_grey_images_of_their_own_size(run):
    run("fit", *FLAGS, "--seed_everything=1")
    (checkpoint,) = Path().glob("runs/*/*/checkpoints/best.ckpt")
    network = load_network(checkpoint)
    assert (network.shape, network.classes) == ((1, 6, 8), ("cat", "dog", "eel"))
    assert "test images" not in run("test", "--ckpt_path", str(checkpoint), "--data.data_dir=mine")
    assert list(Path().glob("runs/*/test_*/evaluation.csv"))
    Image.new("RGB", (20, 20), "red").save("red.png")
    run("predict", "--ckpt_path", str(checkpoint), "--data.data_dir=mine", "--data.images", "red.png", "mine/cat")
    (table,) = Path().glob("runs/*/predict_*/predictions.csv")
    assert len(table.read_text().splitlines()) == 14
    assert list(Path().glob("runs/*/predict_*/predictions.png"))
    run("fit", "--ckpt_path", str(checkpoint.with_name("last.ckpt")), "--trainer.max_epochs=2")


def test_a_sweep_follows_too():
    run_command(["sweep", "--vary", "{model.lr: [0.02, 0.05]}", *FLAGS])
    found = [load_network(path).classes for path in Path().glob("runs/*/sweep_*/*/checkpoints/best.ckpt")]
    assert found == 2 * [("cat", "dog", "eel")]


def test_chosen_classes_are_followed_too(run):
    run("fit", *FLAGS, "--data.classes=[eel, cat]")
    (checkpoint,) = Path().glob("runs/*/*/checkpoints/best.ckpt")
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["num_classes"] == 2


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.in_features=3072", "in_features must be 48, the number of values in an image of shape (1, 6"),
        ("--model.num_classes=10", "num_classes must be 3"),
        ("--data.data_dir=runs", "no such directory"),
    ],
)  # fmt: skip
def test_what_is_given_is_not_changed(fail, flag, said):
    assert said in fail("fit", *FLAGS, flag)


def test_a_wrong_file_is_named(fail):
    Image.new("L", (8, 7)).save("mine/dog/3.png")
    assert "8 x 7 in mine/dog/3.png" in fail("fit", *FLAGS)
