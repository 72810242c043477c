"""Evaluations and predictions through the command line."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL
from lightning.pytorch import Trainer
from PIL import Image

from cifar_lightning import CIFAR10DataModule, MLPClassifier, mc_predict
from cifar_lightning.analysis.views import predict_by_views
from cifar_lightning.cli.arguments import gather_lists
from cifar_lightning.cli.main import main

DROPOUT = ["--model.dropout=alpha", "--model.dropout_position=all", "--model.hidden_sizes=2x20"]
QUIET = "--trainer.enable_progress_bar=false"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of three networks, trained a little on synthetic images."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (1, 2, 3):
        flags = [f"--seed_everything={seed}", f"--trainer.default_root_dir={root}/{seed}", "--trainer.max_epochs=3"]
        main(["fit", *SMALL, *DROPOUT, *flags])
    return [str(next((root / str(seed)).rglob("last.ckpt"))) for seed in (1, 2, 3)]


def folder(kind):
    (found,) = Path("runs").glob(f"*/{kind}_*")
    return found


def evaluation(kind):
    with (folder(kind) / "evaluation.csv").open() as file:
        return list(csv.DictReader(file))


def expected_probabilities(path, split="test"):
    model = MLPClassifier.load_from_checkpoint(path, weights_only=True)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60)
    data.setup()
    (images, labels), *_ = getattr(data, f"{split}_dataloader")()
    return model, images, labels, model.predict_proba(images)


def test_every_way_side_by_side(run, trained):
    asked = ["--evaluation.mc_samples", "20", "--evaluation.ensemble", *trained[1:]]
    printed = run("test", "--ckpt_path", trained[0], *asked, QUIET)
    rows = evaluation("test")
    ways = ["deterministic", "MC dropout, 20 samples", "ensemble of 3"]
    assert [row["prediction"] for row in rows] == ways
    assert all(way in printed for way in ways)
    assert {row["images"] for row in rows} == {"60"}
    for name in ("reliability", "confusion_matrix", "most_uncertain"):
        with Image.open(folder("test") / f"{name}.png") as picture:
            assert min(picture.size) > 300
    members = [expected_probabilities(path) for path in trained]
    _, _, labels, first = members[0]
    mean = torch.stack([member[3] for member in members]).mean(0)
    for row, probabilities in ((rows[0], first), (rows[2], mean)):
        assert float(row["accuracy"]) == pytest.approx((probabilities.argmax(1) == labels).float().mean().item())
        nll = -probabilities[torch.arange(60), labels].log().mean().item()
        assert float(row["nll"]) == pytest.approx(nll, rel=1e-4)
    assert float(rows[1]["mutual_information"]) > 0
    names = "evaluation.csv, reliability.png, confusion_matrix.png, most_uncertain.png"
    assert f"written to {folder('test')}:\n  {names}\nnext: cifar-lightning predict --ckpt_path {trained[0]}" in printed
    saved = yaml.safe_load((folder("test") / "config.yaml").read_text())["evaluation"]
    assert saved["mc_samples"] == 20  # what was asked is in the config, not in the checkpoint
    assert "mc_samples" not in torch.load(trained[0], weights_only=True)["hyper_parameters"]


def test_views_of_a_network_and_of_an_ensemble(run, trained):
    views = ["--evaluation.tta_flip=true", "--evaluation.tta_shift=1", QUIET]
    printed = run("test", "--ckpt_path", trained[0], "--evaluation.ensemble", trained[1], *views)
    rows = {row["prediction"]: row for row in evaluation("test")}
    assert list(rows) == ["deterministic", "18 views", "ensemble of 2", "ensemble of 2, 18 views"]
    assert all(way in printed for way in rows)
    members = [expected_probabilities(path) for path in trained[:2]]
    seen = [predict_by_views(model.predict_proba, images, True, 1) for model, images, _, _ in members]
    labels = members[0][2]
    for way, probabilities in (("18 views", seen[0]), ("ensemble of 2, 18 views", torch.stack(seen).mean(0))):
        nll = -probabilities[torch.arange(60), labels].log().mean().item()
        assert float(rows[way]["nll"]) == pytest.approx(nll, rel=1e-4)


def test_a_prediction_by_views(run, trained):
    run("predict", "--ckpt_path", trained[0], "--evaluation.tta_shift=2", QUIET)
    model, images, _, _ = expected_probabilities(trained[0])
    expected = predict_by_views(model.predict_proba, images, False, 2)
    with (folder("predict") / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(1).values.tolist(), abs=6e-5)


def test_an_ensemble_alone_and_one_named_twice(run, trained):
    run("test", "--evaluation.ensemble", *trained, "--ckpt_path", trained[0], QUIET)
    alone = evaluation("test")
    assert alone[1]["prediction"] == "ensemble of 3"
    run("validate", "--evaluation.ensemble", *trained, QUIET)
    assert evaluation("validate")[1]["prediction"] == "ensemble of 3"


def test_validation_has_the_same_measures(run, trained):
    run("validate", "--ckpt_path", trained[0], "--evaluation.mc_samples=5", QUIET)
    assert {path.name for path in folder("validate").glob("*.png")} == {
        "reliability.png",
        "confusion_matrix.png",
        "most_uncertain.png",
    }
    _, _, labels, probabilities = expected_probabilities(trained[0], "val")
    accuracy = (probabilities.argmax(1) == labels).float().mean().item()
    assert float(evaluation("validate")[0]["accuracy"]) == pytest.approx(accuracy)


def test_a_checkpoint_made_in_python_is_evaluated_by_the_command_line(run):
    model = MLPClassifier(hidden_sizes=[20], optimizer="SGD", schedule="OneCycle")
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(model, CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, scaling="unit"))
    trainer.save_checkpoint("python.ckpt")
    run("test", "--ckpt_path=python.ckpt", QUIET)
    assert len(evaluation("test")) == 1


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(run, trained):
    asked = ["--ckpt_path", trained[0], "--evaluation.ensemble", trained[1], "--data.eval_batch_size=7", QUIET]
    run("test", *asked)
    alone = evaluation("test")
    ddp = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "cifar_lightning", "test", *asked, *ddp, "--evaluation.mc_samples=3"]
    done = subprocess.run([*command, "--trainer.default_root_dir=two"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with next(Path("two").rglob("evaluation.csv")).open() as file:
        rows = {row["prediction"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"deterministic", "MC dropout, 3 samples", "ensemble of 2"}
    for row in alone:
        together = rows[row["prediction"]]
        assert together["images"] == row["images"] == "60"
        for name in ("accuracy", "nll", "brier", "ece", "aurc"):
            assert float(together[name]) == pytest.approx(float(row[name]), rel=1e-4)
    assert next(Path("two").rglob("most_uncertain.png"))


def test_nothing_to_sample(run, fail):
    run("fit", *SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=2x20")
    last = str(next(Path().rglob("last.ckpt")))
    assert "Monte-Carlo dropout has nothing to sample" in fail("test", "--ckpt_path", last, "--evaluation.mc_samples=5")
    assert "tta_shift must be" in fail("test", "--ckpt_path", last, "--evaluation.tta_shift=-1")
    assert "shift must be 0 to 31" in fail("test", "--ckpt_path", last, "--evaluation.tta_shift=32")
    assert "mc_samples must be" in fail("test", "--ckpt_path", last, "--evaluation.mc_samples=-1")


def test_a_member_that_is_missing(fail, trained):
    message = fail("test", "--ckpt_path", trained[0], "--evaluation.ensemble", "nowhere.ckpt")
    assert "expected the file of an ensemble member, got 'nowhere.ckpt'" in message


def test_calibration_is_stored_in_a_checkpoint(run, trained):
    printed = run("validate", "--ckpt_path", trained[0], "--evaluation.calibrate=true", QUIET)
    before, after = (float(row["nll"]) for row in evaluation("validate"))
    calibrated = folder("validate") / "checkpoints" / "calibrated.ckpt"
    assert f"next: cifar-lightning test --ckpt_path {calibrated}\n" in printed
    model, images, labels, probabilities = expected_probabilities(str(calibrated), "val")
    model.eval()
    assert f"calibrated, T = {model.temperature.value:.3f}" in printed  # the row below the one from before
    assert -probabilities[torch.arange(60), labels].log().mean() == pytest.approx(after, rel=1e-4)
    assert after < before
    torch.testing.assert_close(model(images), model.network(model.standardize(images)) / model.temperature.value)


def test_sampling_a_classifier_samples_its_network(trained):
    model, images, _, _ = expected_probabilities(trained[0])
    whole = mc_predict(model, images, 300, seed=1)
    network = mc_predict(model.network, model.standardize(images), 300, seed=1)
    torch.testing.assert_close(whole.mean, network.mean)


@pytest.fixture
def pictures(tmp_path):
    for name, mode, size in (("a", "RGB", (32, 32)), ("b", "L", (50, 40)), ("c", "RGBA", (9, 9))):
        Image.new(mode, size).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    "images", [["a.png", "b.png", "c.png"], ["."], ["*.png"], ['["a.png", "b.png", "c.png"]'], ["a.png", "[bc].png"]]
)
def test_predict_takes_one_several_a_folder_and_a_glob(run, trained, pictures, images):
    printed = run("predict", "--ckpt_path", trained[0], "--data.images", *images, "--evaluation.mc_samples=10", QUIET)
    with (folder("predict") / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["a.png", "b.png", "c.png"]
    for row in rows:
        top = [part.split(":") for part in row["top 3"].split()]
        assert top[0] == [row["class"], row["probability"]]
        assert float(top[0][1]) >= float(top[1][1]) >= float(top[2][1])
        assert 0 <= float(row["entropy"]) <= 2.31
        assert float(row["MC spread"]) >= 0
        assert row["class"] in printed
    assert "2 images were resized" in printed
    assert "1 image was converted from L" in printed
    assert re.search(r"3 images, [\d,]+ per second", printed)
    assert (folder("predict") / "predictions.png").stat().st_size > 5000
    assert f"written to {folder('predict')}:\n  predictions.csv, predictions.png\n" in printed


def test_predict_needs_no_data_set(run, trained, pictures):
    run(
        "predict",
        "--ckpt_path",
        trained[0],
        "--data.source=cifar10",
        "--data.download=false",
        "--data.images=a.png",
        QUIET,
    )
    assert (folder("predict") / "predictions.csv").read_text().count("a.png") == 1


def test_a_broken_image_is_named_skipped_and_told_by_the_status(trained, pictures, capfd):
    (pictures / "bad.png").write_bytes(b"no image")
    (pictures / "empty.png").touch()
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--ckpt_path", trained[0], "--data.images", ".", QUIET, "--data.eval_batch_size=1"])
    assert stop.value.code == 1
    printed = capfd.readouterr().out
    assert "skipped bad.png: not an image" in printed
    assert "skipped empty.png: not an image" in printed
    assert "3 images" in printed
    with (folder("predict") / "predictions.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a.png", "b.png", "c.png"]


def test_predict_on_the_test_images(run, trained):
    run("predict", "--ckpt_path", trained[0], QUIET)
    _, _, labels, probabilities = expected_probabilities(trained[0])
    with (folder("predict") / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["path"]) for row in rows] == list(range(60))
    classes = torch.load(trained[0], weights_only=True)["classes"]
    assert [row["label"] for row in rows] == [classes[k] for k in labels]
    assert [row["class"] for row in rows] == [classes[k] for k in probabilities.argmax(1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--data.images", "a", "b", "--x", "1"], ['--data.images=["a", "b"]', "--x", "1"]),
        (["--data.images", "a"], ['--data.images=["a"]']),
        (["--data.images=a", "b"], ['--data.images=["a", "b"]']),
        (['--evaluation.ensemble=["a"]', "--x"], ['--evaluation.ensemble=["a"]', "--x"]),
        (["fit", "--config", "x"], ["fit", "--config", "x"]),
    ],
)
def test_lists_are_spelt_plainly(given, expected):
    assert gather_lists(given) == expected
