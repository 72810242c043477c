"""What TensorBoard shows, read from the event files as TensorBoard reads them."""

import csv
from pathlib import Path

import pytest
from conftest import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import (
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)

from cifar_lightning.training.run_events import tag_of

FIT = ["fit", *SMALL, "--model.hidden_sizes=2x8", "--trainer.max_epochs=3"]
QUIET = "--trainer.enable_progress_bar=false"


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def hparams(accumulator):
    content = accumulator.summary_metadata
    return {tag: content[tag].plugin_data.content for tag in content if tag.startswith("_hparams_/")}


def values(accumulator, tag):
    return [event.value for event in accumulator.Scalars(tag)]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def only(paths):
    (path,) = paths
    return path


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("train_loss", "loss/train"),
        ("val_top3_accuracy", "top3_accuracy/val"),
        ("test_mc_nll", "mc_nll/test"),
        ("train_step_loss", "loss/train_step"),
        ("lr", "lr"),
        ("epoch", "epoch"),
        ("best/val_loss", "best/val_loss"),
        ("validity", "validity"),
    ],
)
def test_tags_begin_with_what_is_measured(name, tag):
    assert tag_of(name) == tag


@pytest.mark.usefixtures("undrawn")
def test_training_and_validation_share_a_group_and_a_chart(run):
    run(*FIT)
    folder = only(Path("runs/default").iterdir())
    written = events(folder)
    assert set(written.Tags()["scalars"]) >= {
        "loss/train",
        "loss/val",
        "accuracy/train",
        "accuracy/val",
        "best/val_loss",
    }
    losses = [float(row["val_loss"]) for row in rows(folder) if row["val_loss"]]  # in metrics.csv by its own name
    assert values(written, "loss/val") == pytest.approx(losses)
    (layout,) = written.Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart
    assert [list(chart.multiline.tag) for chart in charts] == [
        ["^loss/train$", "^loss/val$"],
        ["^accuracy/train$", "^accuracy/val$"],
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_one_row_with_its_best_epoch_and_its_test(run):
    run(*FIT)
    folder = only(Path("runs/default").iterdir())
    best = min((row for row in rows(folder) if row["val_loss"]), key=lambda row: float(row["val_loss"]))
    for kind in ("validate", "test"):
        run(kind, f"--ckpt_path={folder}/checkpoints/best.ckpt", QUIET)
        assert not hparams(events(only(Path("runs/default").glob(f"{kind}_*"))))
    with only(Path().rglob("test_*/evaluation.csv")).open() as file:
        (tested,) = csv.DictReader(file)
    written = events(folder)
    metadata = hparams(written)
    experiment = parse_experiment_plugin_data(metadata["_hparams_/experiment"])
    names = [info.name.tag for info in experiment.metric_infos]
    assert names == ["best/val_loss", "best/val_accuracy", "test/loss", "test/accuracy"]
    expected = [best["val_loss"], best["val_accuracy"], tested["nll"], tested["accuracy"]]
    assert [values(written, name) for name in names] == [[pytest.approx(float(value))] for value in expected]
    start = parse_session_start_info_plugin_data(metadata["_hparams_/session_start_info"])
    assert start.hparams["lr"].number_value == 0.001
    assert start.hparams["data_set"].string_value == "synthetic"
    assert "hp_metric" not in written.Tags()["scalars"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("flags", [["--trainer.limit_val_batches=0"], ["--trainer.check_val_every_n_epoch=2"]])
def test_a_run_that_is_validated_seldom_or_never_is_a_row_too(run, flags):
    run(*FIT, *flags)
    written = events(only(Path("runs/default").iterdir()))
    assert "_hparams_/session_start_info" in hparams(written)
    assert ("best/val_loss" in written.Tags()["scalars"]) == ("check" in flags[0])


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_images(run):
    extra = ["--trainer.callbacks+=LRFinder", "--trainer.callbacks.num_steps=40", "--trainer.callbacks+=SignalPicture"]
    run(*FIT, *extra)
    folder = only(Path("runs/default").iterdir())
    assert set(events(folder).Tags()["images"]) == {"lr_finder", "signals"}
    run("test", f"--ckpt_path={folder}/checkpoints/best.ckpt", QUIET)
    images = events(only(Path("runs/default").glob("test_*")))
    assert set(images.Tags()["images"]) == {"reliability", "confusion_matrix"}
    (picture,) = images.Images("reliability")
    assert min(picture.width, picture.height) > 300


@pytest.mark.usefixtures("undrawn")
def test_a_logger_of_lightnings_own_has_the_best_accuracy(run):
    run(*FIT, "--trainer.logger={class_path: TensorBoardLogger, init_args: {save_dir: logs}}")
    written = events(only(Path("logs").rglob("version_0")))
    losses, accuracies = (values(written, f"val_{name}") for name in ("loss", "accuracy"))
    assert values(written, "hp_metric")[-1] == accuracies[losses.index(min(losses))]
