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
