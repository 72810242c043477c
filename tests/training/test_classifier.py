import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from cifar_lightning import CIFAR10DataModule, MLPClassifier, OneCycle, compute_statistics
from cifar_lightning.training.length import count_optimizer_steps

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
PRIMITIVES = (str, int, float, bool, type(None))


def small(**options):
    return MLPClassifier(**{"hidden_sizes": "2x8"} | options)


def data(**options):
    return CIFAR10DataModule(**{"source": "synthetic", "synthetic_size": 200, "val_size": 40} | options)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(**quiet | {"accelerator": "cpu", "enable_checkpointing": False} | options)


def assert_primitive(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            assert_primitive(item)
    else:
        assert isinstance(value, PRIMITIVES), value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_sizes": [9, 7], "optimizer": torch.optim.RMSprop, "schedule": OneCycle(div_factor=5)},
        {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "normalization": "batch", "activation": "elu"},
        {"optimizer": {"class_path": "torch.optim.NAdam", "init_args": {"betas": (0.8, 0.9)}}, "activation": "relu"},
    ],
)
def test_a_checkpoint_alone_classifies(tmp_path, options):
    model, run = small(**options), trainer(enable_checkpointing=True)
    run.fit(model, data())
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = MLPClassifier.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert dict(loaded.hparams) == dict(model.hparams)
    assert_primitive(dict(model.hparams))
    assert isinstance(model.hparams["hidden_sizes"], list)
    probabilities = loaded.predict_proba(IMAGES)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
    torch.testing.assert_close(probabilities, model.predict_proba(IMAGES))
    assert torch.equal(loaded.standardize.mean, run.datamodule.statistics.mean)


def test_hparams_hold_every_choice():
    hparams = small(lr=0.5, mixup=0.2).hparams
    assert (hparams["mixup"], hparams["label_smoothing"]) == (0.2, 0.0)
    assert hparams["lr"] == 0.5
    assert hparams["optimizer"]["class_path"] == "torch.optim.NAdam"
    assert hparams["optimizer"]["init_args"]["momentum_decay"] == 0.004
    assert hparams["activation"] == "selu"
    assert hparams["hidden_sizes"] == [8, 8]


def test_forward_standardizes_and_gives_logits():
    model = small()
    model.standardize.mean.fill_(100)
    model.standardize.std.fill_(50)
    torch.testing.assert_close(model(IMAGES), model.network((IMAGES.float() - 100) / 50))
    assert model(IMAGES).shape == (6, 10)


def test_loss_is_the_cross_entropy_of_the_logits():
    model, labels = small(), torch.arange(6)
    run = trainer()
    run.fit(model, data())
    model.trainer = run
    torch.testing.assert_close(
        model.training_step((IMAGES, labels), 0).detach(), F.cross_entropy(model(IMAGES), labels).detach()
    )


def test_metrics_of_an_epoch(tmp_path):
    # With a rate of next to nothing, training and evaluation measure the same network.
    model, module, run = small(lr=1e-12), data(batch_size=7), trainer()
    run.fit(model, module)
    model.eval()
    with torch.no_grad():
        logits = model(module.images.train_images)
    for name, part in (("train", module._train), ("val", module._val)):
        expected = F.cross_entropy(logits[part], module.images.train_labels[part])
        torch.testing.assert_close(run.callback_metrics[f"{name}_loss"], expected, rtol=1e-4, atol=1e-4)
        accuracy = (logits[part].argmax(1) == module.images.train_labels[part]).float().mean()
        torch.testing.assert_close(run.callback_metrics[f"{name}_accuracy"], accuracy)
    assert "val_top3_accuracy" in run.callback_metrics


def test_predict_proba_leaves_the_mode_alone():
    model = small(dropout="alpha", dropout_position="all").train()
    assert torch.equal(model.predict_proba(IMAGES), model.predict_proba(IMAGES))
    assert model.training


def test_max_norm_holds_after_every_step():
    model = small(activation="relu", max_norm=0.5, lr=0.1)
    trainer(limit_train_batches=3).fit(model, data())
    for layer in model.network.hidden:
        assert layer.linear.weight.norm(dim=1).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("scaling", ["raw", "unit"])
def test_a_selu_network_warns_of_an_input_that_is_not_standardized(scaling):
    with pytest.warns(UserWarning, match="the input is not standardized"):
        trainer(limit_train_batches=1).fit(small(), data(scaling=scaling))


def test_a_trained_network_keeps_its_statistics_and_refuses_others():
    model, module = small(), data()
    trainer().fit(model, module)
    mean = model.standardize.mean.clone()
    trainer().test(model, data(val_split="last"), verbose=False)
    assert torch.equal(model.standardize.mean, mean)
    with pytest.raises(ValueError, match="contradicting scalings: expected 'feature', .* got 'unit'"):
        trainer().test(model, data(scaling="unit"), verbose=False)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({}, 3 * 20),
        ({"limit_train_batches": 7}, 3 * 7),
        ({"limit_train_batches": 0.5}, 3 * 10),
        ({"accumulate_grad_batches": 3}, 3 * 7),
        ({"max_steps": 11}, 11),
        ({"max_epochs": -1, "max_steps": 70}, 70),
    ],
)
def test_one_cycle_is_as_long_as_the_training(flags, steps):
    model, run = small(optimizer="SGD", schedule="OneCycle"), trainer(**{"max_epochs": 3} | flags)
    run.fit(model, data(batch_size=8))
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert scheduler.total_steps == steps + 1
    assert scheduler.last_epoch == run.global_step == steps
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 10 / 1000)


def test_steps_of_a_plain_loader_and_of_an_endless_training():
    loader = DataLoader(TensorDataset(IMAGES, torch.arange(6)), batch_size=2)
    model, run = small(optimizer="SGD", schedule="OneCycle"), trainer(max_epochs=2)
    model.standardize.set_statistics(compute_statistics(IMAGES, "feature"))
    run.fit(model, loader)
    assert count_optimizer_steps(run) == 6
    with pytest.raises(ValueError, match="OneCycle needs to know the length of the run"):
        trainer(max_epochs=-1).fit(small(schedule="OneCycle"), data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"optimizer": "Nadam"}, "did you mean 'NAdam'"),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=1)}, "lr must be set as"),
        ({"schedule": "Cycle"}, "unknown schedule"),
        ({"activation": "swich"}, "did you mean 'swish'"),
        ({"mixup": -1.0}, "mixup must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_labels_and_images():
    loader = DataLoader(TensorDataset(IMAGES, torch.tensor([0, 1, 2, 3, 4, 10])), batch_size=6)
    with pytest.raises(ValueError, match="wrong labels: expected 0 to 9, got 0 to 10"):
        trainer().fit(small(), loader)
    with pytest.raises(ValueError, match=r"wrong image shape: expected \(B, 3, 32, 32\), got \(2, 3, 8, 8\)"):
        small()(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(6), ""),
        (torch.arange(6, dtype=torch.uint8), ""),
        (torch.arange(6, dtype=torch.int32), r"as int64 or uint8, got torch.int32 of shape \(6,\)"),
        (torch.arange(6.0), r"as int64 or uint8, got torch.float32 of shape \(6,\)"),
        (torch.eye(10)[:6], r"as int64 or uint8, got torch.float32 of shape \(6, 10\)"),
        (torch.arange(6)[:, None], r"expected one for each image, of shape \(6,\), got \(6, 1\)"),
    ],
    ids=["int64", "uint8", "int32", "floats", "probabilities", "a column"],
)
def test_labels_are_indices(cutmix, labels, message):
    expected = pytest.raises(ValueError, match=f"wrong labels: .*{message}") if message else contextlib.nullcontext()
    with expected:
        trainer().fit(small(cutmix=cutmix), DataLoader(TensorDataset(IMAGES.float(), labels), batch_size=6))


def test_the_data_has_as_many_classes_as_the_network():
    message = r"num_classes must be 2, the number of classes in the data \(disc, ring\), got 10"
    with pytest.raises(ValueError, match=message):
        trainer().fit(small(), data(classes=["disc", "ring"]))


def test_an_evaluation_on_other_classes_is_refused(tmp_path):
    model, run = small(num_classes=2), trainer()
    run.fit(model, data(classes=["disc", "ring"]))
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = MLPClassifier.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    trainer().test(loaded, data(classes=["disc", "ring"]), verbose=False)
    with pytest.raises(ValueError, match=r"wrong classes: expected \['disc', 'ring'\].*got \['ring', 'disc'\]"):
        trainer().test(loaded, data(classes=["ring", "disc"]), verbose=False)


def test_a_resume_on_other_classes_is_refused(tmp_path):
    run = trainer()
    run.fit(small(num_classes=2), data(classes=["disc", "ring"]))
    run.save_checkpoint(tmp_path / "x.ckpt")
    message = r"wrong data set: expected 'synthetic \(disc, ring\)'.*got 'synthetic \(disc, rows\)'"
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=2).fit(small(num_classes=2), data(classes=["disc", "rows"]), ckpt_path=tmp_path / "x.ckpt")


def test_bf16():
    model = small()
    trainer(precision="bf16-mixed").fit(model, data())
    assert model.network.output.weight.dtype == torch.float32


def test_a_classifier_is_shown_in_a_few_lines():
    classifier = MLPClassifier()
    assert len(repr(classifier).splitlines()) < 12
    assert "20 x 100 selu" in repr(classifier)
    assert "EpochMetrics(train_accuracy, train_loss, train_top3_accuracy)" in repr(classifier)
