"""`cifar-lightning export`, from a checkpoint of `fit` to files that are checked on the test images."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from cifar_lightning import load_network
from cifar_lightning.__main__ import run as run_command

for module in ("onnx", "onnxscript", "onnxruntime", "safetensors", "huggingface_hub"):
    pytest.importorskip(module)

FLAGS = [*SMALL, "--trainer.max_epochs=1", "--execution.compile=never", "--model.hidden_sizes=2x8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of a small training with dropout."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("cifar_lightning.callbacks.report.draw_learning_curves", lambda *args: None)
        run_command(["fit", "--config", "alpha_dropout", *FLAGS])
    return folder


@pytest.fixture
def checkpoint(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (path,) = tmp_path.glob("runs/*/*/checkpoints/best.ckpt")
    return path


@pytest.fixture
def export(capfd):
    def export(*args, status=0):
        capfd.readouterr()
        if status:
            with pytest.raises(SystemExit) as stop:
                run_command(["export", *map(str, args)])
            assert stop.value.code == status
        else:
            run_command(["export", *map(str, args)])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return printed.out + printed.err

    return export


@pytest.mark.parametrize("name", ["onnx", "torch-export", "safetensors"])
def test_a_file_is_written_checked_and_reported(checkpoint, export, name):
    printed = export("--ckpt_path", checkpoint, "--format", name)
    (file,) = (path for path in checkpoint.parent.iterdir() if path.suffix != ".ckpt")
    assert f"written: {file}" in printed
    difference = float(re.search(r"largest difference from the checkpoint's probabilities: (\S+),", printed)[1])
    assert difference <= 1e-5
    assert "on 60 test images of synthetic" in printed
    assert re.search(r"accuracy: \d+\.\d\d%", printed)


def test_best_is_found_by_the_config_and_out_is_where_it_goes(checkpoint, export):
    printed = export("--config", "alpha_dropout", "--ckpt_path", "best", "--format=safetensors", "--out=a.safetensors")
    assert "written: a.safetensors" in printed
    assert load_network("a.safetensors").classes == load_network(checkpoint).classes


def test_eight_bits_and_their_accuracy(checkpoint, export):
    printed = export("--ckpt_path", checkpoint, "--format", "onnx", "--int8", "true")
    assert printed.count("accuracy: ") == 2
    assert checkpoint.with_suffix(".int8.onnx").exists()


def test_monte_carlo_dropout(checkpoint, export):
    import onnxruntime

    export("--ckpt_path", checkpoint, "--format", "onnx", "--mc_dropout", "true")
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"))
    assert [each.name for each in session.get_inputs()] == ["images", "seeds"]
    assert [each.name for each in session.get_outputs()] == ["probabilities", "std", "mutual_information"]


def test_a_hub_folder_has_a_card_of_its_run(checkpoint, export, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export("--ckpt_path", checkpoint, "--format", "hub", "--out", "my-mlp")
    card = Path("my-mlp/README.md").read_text()
    recipe = ("learning rate: ", "block: plain", "mixup: 0.0", "momentum_decay 0.004")
    for said in ("data set: synthetic", "seed: 42", *recipe, "accuracy: 0.", "## Limits", "Apache", "disc"):
        assert said in card
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.library_name == "cifar_lightning"
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(load_network("my-mlp")(images), load_network(checkpoint)(images))


def test_without_the_data_set_random_images_do(checkpoint, export):
    stored = torch.load(checkpoint, weights_only=True)
    stored["datamodule_hyper_parameters"]["source"] = "cifar10"
    torch.save(stored, checkpoint)
    printed = export("--ckpt_path", checkpoint, "--format", "safetensors")
    assert "on 1,000 random images, since the test images are not in data" in printed
    assert "accuracy" not in printed
    printed = export("--ckpt_path", checkpoint, "--format", "safetensors", "--data_dir", ".", status=2)
    assert "no CIFAR-10 in '.'" in printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--format", "safetensors", "--mc_dropout", "true"], "--mc_dropout needs --format onnx or torch-export"),
        (
            ["--format", "torch-export", "--int8", "true"],
            "--int8 needs --format onnx without --mc_dropout, got --format torch",
        ),
        (["--format", "onnx", "--int8", "true", "--mc_dropout", "true"], "got --mc_dropout"),
        (["--format", "onnx", "--out", "a.bin"], "expected one ending in .onnx, got 'a.bin'"),
        (["--format", "onnx", "--out", "no/a.onnx"], "no such folder"),
        (["--format", "tflite"], "tflite"),
        (["--format", "onnx", "--ckpt_path", "none.ckpt"], "no such checkpoint: expected a file, best or last"),
        (["--fromat", "onnx"], "--fromat"),
    ],
)
def test_mistakes(checkpoint, export, args, said):
    printed = export("--ckpt_path", checkpoint, *args, status=2)
    assert said in printed
    assert printed.count("error") <= 1


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("safetensors", "safetensors"), ("hub", "x")])
def test_a_missing_extra_is_named(checkpoint, export, monkeypatch, name, module):
    module = "huggingface_hub" if name == "hub" else module
    monkeypatch.setitem(sys.modules, module, None)
    printed = export("--ckpt_path", checkpoint, "--format", name, status=2)
    extra = "hub" if name == "hub" else "export"
    assert f'got no {module}. Install it with: pip install "cifar_lightning[{extra}]"' in printed
