import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from cifar_lightning import CIFAR10DataModule, LRFinder, MLPClassifier, Standardize, compute_statistics


def ready(**options):
    module = CIFAR10DataModule(**{"source": "synthetic", "synthetic_size": 300, "val_size": 60} | options)
    module.prepare_data()
    module.setup()
    return module


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(**quiet | {"accelerator": "cpu", "enable_checkpointing": False} | options)


class SomebodysCNN(LightningModule):
    """Knows nothing of this package, and remembers the images that it was given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10))
        self.save_hyperparameters({"lr": 0.01})
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    validation_step = test_step = training_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class Wrapper(SomebodysCNN):
    """Leaves its images to a network of this package."""

    def __init__(self, part):
        super().__init__()
        self.net = part


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


def test_training_images_alone_are_augmented():
    plain, augmented = (
        CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=30, **options)
        for options in ({}, {"flip": True, "shift": 4})
    )
    for data in (plain, augmented):
        data.setup()
    for loader in ("val_dataloader", "test_dataloader"):
        pairs = zip(getattr(plain, loader)(), getattr(augmented, loader)(), strict=True)
        assert all(torch.equal(ours, theirs) for batches in pairs for ours, theirs in zip(*batches, strict=True))
    assert torch.equal(plain.statistics.mean, augmented.statistics.mean)
    (images, labels), (variants, same) = (next(iter(data.train_dataloader())) for data in (plain, augmented))
    assert torch.equal(labels, same)
    assert variants.dtype == torch.uint8
    assert not torch.equal(images, variants)
    loader = augmented.train_dataloader()
    assert torch.equal(next(iter(loader))[0], variants)
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], variants)


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
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"synthetic_size": 0}, "synthetic_size must be"),
        ({"val_size": 300}, "val_size must be 1 to 299 images"),
        ({"val_split": "top"}, "unknown val_split"),
        ({"scaling": "norm"}, "unknown scaling"),
        (
            {"classes": ["disc", "rinq"]},
            r"unknown class: expected .*; got 'rinq' \(did you mean 'ring'",
        ),
        ({"classes": [0, 10]}, "unknown class: .* got 10"),
        ({"classes": ["disc"]}, r"wrong classes: expected at least two, each only once; got \['disc'\]"),
        ({"classes": ["disc", "ring", 0]}, "wrong classes: .* got"),
        (
            {"classes": [0, 1], "val_size": 1},
            "no validation images: expected .* of disc, square, got 1",
        ),
        ({"train_size": 0}, "train_size must be 1 to 240, the size of the training split, got 0"),
        ({"train_size": 241}, "train_size must be .* got 241"),
        ({"source": "cifar10", "data_dir": "nowhere"}, r"data_dir must be .* got 'nowhere'"),
        ({"source": "cifar10", "download": False}, "no CIFAR-10 in 'data': expected .* got no such directory"),
        ({"source": "cifar10", "download": False, "data_dir": "."}, "got an empty directory"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_a_named_directory_that_is_missing_never_gives_synthetic_images():
    with pytest.raises(ValueError, match="data_dir must be"):
        ready(source="cifar10_or_synthetic", data_dir="nowhere")


def test_the_synthetic_set_is_taken_with_a_banner(capsys):
    module = ready(source="cifar10_or_synthetic", download=False)
    assert module.data_set == "synthetic"
    banner = capsys.readouterr().err
    assert "USING SYNTHETIC IMAGES instead" in banner
    assert "cifar-10-python.tar.gz" in banner


def test_loaders_need_a_setup():
    with pytest.raises(ValueError, match=r"call prepare_data\(\) and setup\(\) first"):
        CIFAR10DataModule(source="synthetic").train_dataloader()


def test_a_training_split_is_a_dataset():
    module = ready(val_split="last", val_size=60, batch_size=32)
    for loader, size in ((module.train_dataloader(), 240), (module.val_dataloader(), 60)):
        assert len(loader.dataset) == size
        assert len(list(DataLoader(loader.dataset, batch_size=8, shuffle=True))) == -(-size // 8)
    image, label = module.val_dataloader().dataset[0]
    assert torch.equal(image, module.images.train_images[240])
    assert label == module.images.train_labels[240]
    image, label = module.test_dataloader().dataset[-1]
    assert torch.equal(image, module.images.test_images[-1])


@pytest.mark.parametrize("scaling", ["feature", "channel", "unit", "raw"])
def test_somebodys_network_gets_standardized_floats(scaling):
    module, data, run = SomebodysCNN(), ready(scaling=scaling, eval_batch_size=60), trainer()
    statistics, images = data.statistics, data.images
    expected = {
        "val": (images.train_images[:60].float() - statistics.mean) / statistics.std,
        "test": (images.test_images.float() - statistics.mean) / statistics.std,
    }
    run.fit(module, data)
    run.validate(module, data, verbose=False)
    torch.testing.assert_close(module.seen[-1], expected["val"])
    run.test(module, data, verbose=False)
    torch.testing.assert_close(module.seen[-1], expected["test"])
    assert torch.cat(run.predict(module, data)).shape == (60, 10)
    torch.testing.assert_close(module.seen[-1], expected["test"])
    assert {images.dtype for images in module.seen} == {torch.float32}


def test_somebodys_network_predicts_image_files():
    Image.new("RGB", (32, 32), (200, 10, 10)).save("x.png")
    Image.new("RGB", (99, 10), (200, 10, 10)).save("y.png")
    module, statistics = SomebodysCNN(), ready().statistics
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, images=["x.png", "y.png"])
    (output,) = trainer().predict(module, data)
    assert output.shape == (2, 10)
    red = torch.tensor([200.0, 10.0, 10.0]).view(3, 1, 1)
    torch.testing.assert_close(module.seen[-1][0], (red - statistics.mean) / statistics.std)


def test_files_alone_need_no_data_set():
    Image.new("RGB", (32, 32)).save("x.png")
    data = CIFAR10DataModule(data_dir="nowhere", images="x.png")
    module = MLPClassifier(hidden_sizes="2x8")
    module.standardize.set_statistics(ready().statistics)
    for predicts in (module, Wrapper(module)):
        (output,) = trainer().predict(predicts, data)
        assert output.shape == (1, 10)
    with pytest.raises(ValueError, match="data_dir must be"):
        trainer().predict(SomebodysCNN(), data)


def test_files_to_predict_do_not_hide_the_data_set_from_a_training():
    Image.new("RGB", (32, 32)).save("x.png")
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, images="x.png")
    module, run = MLPClassifier(hidden_sizes="2x8"), trainer()
    run.fit(module, data)
    assert module.standardize.scaling == "feature"
    assert len(run.predict(module, data)[0]) == 1


def test_who_standardizes_gets_bytes():
    trained = MLPClassifier(hidden_sizes="2x8")
    trainer().fit(trained, ready())
    own = SomebodysCNN()
    own.standardize = Standardize()
    own.net = nn.Sequential(own.standardize, own.net)
    for module in (own, Wrapper(trained)):
        trainer().test(module, ready(), verbose=False)
        assert module.seen[-1].dtype == torch.uint8
    fresh = Wrapper(MLPClassifier(hidden_sizes="2x8"))  # nobody gives it statistics
    trainer().fit(fresh, ready())
    assert fresh.seen[-1].dtype == torch.float32


def test_a_finder_gives_somebodys_network_floats():
    torch.manual_seed(0)
    finder = LRFinder(num_steps=100)
    trainer(callbacks=[finder], max_steps=1).fit(SomebodysCNN(), ready())  # a convolution takes no bytes
    assert finder.sweep is not None


def test_one_data_module_serves_trainers_in_turn():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, order_seed=1)
    first, somebodys, second = MLPClassifier(hidden_sizes="2x8"), SomebodysCNN(), MLPClassifier(hidden_sizes="2x8")
    second.load_state_dict(first.state_dict())
    trainer(max_epochs=2).fit(first, data)
    trainer().fit(somebodys, data)
    trainer(max_epochs=2).fit(second, data)
    assert {images.dtype for images in somebodys.seen} == {torch.float32}
    assert torch.equal(first.network.output.weight, second.network.output.weight)


def test_the_order_of_a_resumed_training_ends_with_it(monkeypatch, tmp_path):
    def fit(data, seed, **options):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        trainer().fit(MLPClassifier(hidden_sizes="2x8"), data, **options)
        return data.state_dict()["order_seed"]

    data, run = ready(), trainer(max_epochs=1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    run.fit(MLPClassifier(hidden_sizes="2x8"), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert fit(data, "2", ckpt_path=tmp_path / "x.ckpt", weights_only=True) == 1
    assert fit(data, "3") == 3


def test_setup_adds_the_data_set_to_the_hyperparameters():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60)
    before = dict(data.hparams)
    for _ in range(2):
        data.setup()
        assert dict(data.hparams) == before | {"data_set": "synthetic"}


def test_a_checkpoint_makes_the_data_module_again(tmp_path):
    data, run = ready(batch_size=16, val_split="random"), trainer()
    run.fit(MLPClassifier(hidden_sizes="2x8"), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = CIFAR10DataModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    again.setup()
    assert dict(again.hparams) == dict(data.hparams)
    assert torch.equal(again.statistics.mean, data.statistics.mean)


@pytest.mark.parametrize(("size", "val", "batch"), [(150, 60, 89), (400, 79, 32)])
def test_batch_norm_is_trained_where_one_image_would_be_left_over(size, val, batch):
    data, run = ready(synthetic_size=size, val_size=val, batch_size=batch), trainer()
    run.fit(MLPClassifier(hidden_sizes="2x8", activation="elu", normalization="batch"), data)
    assert run.global_step == len(data.train_dataloader()) == (size - val) // batch


@pytest.mark.parametrize(("size", "batch"), [(61, 32), (70, 1)])
def test_batch_norm_on_single_images_is_refused_before_the_first_step(size, batch):
    module, run = MLPClassifier(hidden_sizes="2x8", activation="elu", normalization="batch"), trainer()
    with pytest.raises(ValueError, match="batch normalization can't be trained on single images: expected at least"):
        run.fit(module, ready(synthetic_size=size, val_size=60, batch_size=batch))
    assert run.global_step == 0
    for normalization in ("none", "layer"):
        module = MLPClassifier(hidden_sizes="2x8", activation="elu", normalization=normalization)
        trainer().fit(module, ready(synthetic_size=size, val_size=60, batch_size=batch))


def test_a_setup_without_the_files_says_what_comes_first():
    with pytest.raises(
        ValueError, match=r"call prepare_data\(\), which downloads it, before setup\(\); got no such directory"
    ):
        CIFAR10DataModule().setup()


@pytest.mark.real
def test_real_statistics(cifar10_dir):
    module = ready(source="cifar10", data_dir=cifar10_dir, val_size=5000, scaling="channel")
    assert module.data_set == "CIFAR-10"
    # The well-known figures of the 50,000, to within what 5,000 images change.
    expected = 255 * torch.tensor([0.4914, 0.4822, 0.4465])
    torch.testing.assert_close(module.statistics.mean[:, 0, 0], expected, rtol=0, atol=0.5)


def test_it_is_shown_in_one_line():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=50, val_size=20, scaling="raw", batch_size=8)
    assert repr(data) == "CIFAR10DataModule(synthetic, not set up yet; raw scaling, batches of 8)"
    data.setup()
    sizes = "30 training, 20 validation, 10 test images"
    assert repr(data) == f"CIFAR10DataModule(synthetic: {sizes}; raw scaling, batches of 8)"
