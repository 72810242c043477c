import pytest
import torch

from cifar_lightning import CIFAR10DataModule, compute_statistics


def ready(**options):
    module = CIFAR10DataModule(**{"source": "synthetic", "synthetic_size": 300, "val_size": 60} | options)
    module.prepare_data()
    module.setup()
    return module


def test_batches_are_uint8():
    module = ready(batch_size=32, eval_batch_size=50)
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (32, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    for loader, size, count in (
        (module.train_dataloader(), 240, 8),
        (module.val_dataloader(), 60, 2),
        (module.test_dataloader(), 60, 2),
        (module.predict_dataloader(), 60, 2),
    ):
        assert len(loader) == count
        assert sum(len(labels) for _, labels in loader) == size


def test_statistics_are_of_the_training_split_only():
    module = ready(val_split="last")
    expected = compute_statistics(module.images.train_images[:240], "feature")
    torch.testing.assert_close(module.statistics.mean, expected.mean)
    torch.testing.assert_close(module.statistics.std, expected.std)


@pytest.mark.parametrize("val_split", ["first", "random", "stratified"])
def test_other_classes_are_left_out_of_every_split(val_split):
    whole, module = ready(val_split=val_split), ready(val_split=val_split, classes=["rows", "disc"])
    assert module.images.classes == ("rows", "disc")
    assert module.data_set == "synthetic (rows, disc)"
    images, old = whole.images, {0: whole.images.classes.index("rows"), 1: whole.images.classes.index("disc")}
    for part in ("_train", "_val"):  # the same images are held out, in the same order
        ours, theirs = getattr(module, part), getattr(whole, part)
        theirs = theirs[torch.isin(images.train_labels[theirs], torch.tensor(list(old.values())))]
        assert torch.equal(module.images.train_images[ours], images.train_images[theirs])
        labels = module.images.train_labels[ours]
        assert [old[label] for label in labels.tolist()] == images.train_labels[theirs].tolist()
    chosen = torch.isin(images.test_labels, torch.tensor(list(old.values())))
    assert torch.equal(module.images.test_images, images.test_images[chosen])
    assert [old[label] for label in module.images.test_labels.tolist()] == images.test_labels[chosen].tolist()
    expected = compute_statistics(module.images.train_images[module._train], "feature")
    assert torch.equal(module.statistics.mean, expected.mean)


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        ([3, 4], "synthetic (cross, ring)"),
        ([4, 3], "synthetic (ring, cross)"),
        ([0, 1, 2, 3, 4, 7, 8, 9], "synthetic without rows, columns"),
        ([1, 0, 2, 3, 4, 7], "synthetic (square, disc, triangle, cross, ring, diagonals)"),
        (
            [*range(1, 10), 0],
            "synthetic (square, triangle, cross, ring, rows, columns, diagonals, checkers, dots, disc)",
        ),
    ],
)
def test_the_data_set_is_named_by_its_classes_and_their_order(classes, name):
    assert ready(classes=classes).data_set == name


def test_classes_by_index_are_those_by_name():
    named, counted = ready(classes=["rows", "disc"]), ready(classes=[5, 0])
    assert counted.images.classes == named.images.classes
    assert torch.equal(counted.images.train_labels, named.images.train_labels)


def test_fewer_training_images_are_the_first_ones():
    whole, module = ready(classes=[5, 6]), ready(classes=[5, 6], train_size=20)
    assert torch.equal(module._train, whole._train[:20])
    assert torch.equal(module._val, whole._val)
    assert sum(len(labels) for _, labels in module.train_dataloader()) == 20
    expected = compute_statistics(whole.images.train_images[whole._train[:20]], "feature")
    assert torch.equal(module.statistics.mean, expected.mean)


def test_order_goes_by_the_global_seed_unless_told_otherwise(monkeypatch):
    def first(**options):
        return next(iter(ready(**options).train_dataloader()))[1].tolist()

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    one = first()
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert first() != one
    assert first(order_seed=1) == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size out of range: expected at least 1, received 0"),
        ({"synthetic_size": 0}, "synthetic_size out of range"),
        ({"val_size": 300}, "val_size out of range: expected 1 to 299 images"),
        ({"val_split": "top"}, "unknown val_split"),
        ({"scaling": "norm"}, "unknown scaling"),
        (
            {"classes": ["disc", "rinq"]},
            r"unknown class: expected .*; received 'rinq' \(did you mean 'ring'",
        ),
        ({"classes": [0, 10]}, "unknown class: .* received 10"),
        ({"classes": ["disc"]}, r"wrong classes: expected at least two, each of them once; received \['disc'\]"),
        ({"classes": ["disc", "ring", 0]}, "wrong classes: .* received"),
        (
            {"classes": [0, 1], "val_size": 1},
            "no validation images: expected .* of disc, square; received 1",
        ),
        ({"train_size": 0}, "train_size out of range: expected 1 to 240, the size of the training split; received 0"),
        ({"train_size": 241}, "train_size out of range: .* received 241"),
        ({"source": "cifar10", "data_dir": "nowhere"}, r"wrong data_dir: expected .* received 'nowhere'"),
        ({"source": "cifar10", "download": False}, "no CIFAR-10 in 'data': expected .* received no such directory"),
        ({"source": "cifar10", "download": False, "data_dir": "."}, "received an empty directory"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_a_named_directory_that_is_missing_never_gives_synthetic_images():
    with pytest.raises(ValueError, match="wrong data_dir"):
        ready(source="cifar10_or_synthetic", data_dir="nowhere")


def test_the_synthetic_set_is_taken_with_a_banner(capsys):
    module = ready(source="cifar10_or_synthetic", download=False)
    assert module.data_set == "synthetic"
    banner = capsys.readouterr().err
    assert "USING SYNTHETIC IMAGES instead" in banner
    assert "cifar-10-python.tar.gz" in banner


def test_loaders_need_a_setup():
    with pytest.raises(ValueError, match=r"expected prepare_data\(\) and setup\(\) first"):
        CIFAR10DataModule(source="synthetic").train_dataloader()


@pytest.mark.real
def test_real_statistics(cifar10_dir):
    module = ready(source="cifar10", data_dir=cifar10_dir, val_size=5000, scaling="channel")
    assert module.data_set == "CIFAR-10"
    # The well-known figures of the 50,000, to within what 5,000 images change.
    expected = 255 * torch.tensor([0.4914, 0.4822, 0.4465])
    torch.testing.assert_close(module.statistics.mean[:, 0, 0], expected, rtol=0, atol=0.5)
