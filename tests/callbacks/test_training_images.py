import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.callbacks import training_images
from cifar_lightning.callbacks.training_images import TrainingImages


def drawn(monkeypatch, tmp_path, model=None, **data):
    """What is drawn: variants, captions and names of columns."""
    calls = []
    monkeypatch.setattr(training_images, "draw_variants", lambda *args: calls.append(args))
    monkeypatch.setattr(training_images, "show_picture", lambda *args: None)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, **data)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, callbacks=[TrainingImages(5, 6)], default_root_dir=tmp_path, **quiet)
    trainer.fit(model or MLPClassifier(hidden_sizes=[4]), data)
    assert trainer.global_step == 0
    ((variants, captions, columns, *_),) = calls
    return data.first_training_images(5), variants, captions, columns


def test_without_augmentation_every_epoch_is_the_same(monkeypatch, tmp_path):
    (images, _), variants, captions, columns = drawn(monkeypatch, tmp_path)
    assert torch.equal(variants, images[:, None].float().expand(-1, 7, -1, -1, -1))
    assert columns == ["original", *(f"epoch {n}" for n in range(1, 7))]
    assert all(len(set(row)) == 1 for row in captions)


def test_images_are_mirrored(monkeypatch, tmp_path):
    (images, _), variants, _, _ = drawn(monkeypatch, tmp_path, flip=True)
    images = images.float()
    seen = [torch.equal(each, image) for image, row in zip(images, variants, strict=True) for each in row[1:]]
    assert 0 < sum(seen) < len(seen)
    turned = [torch.equal(each, image.flip(-1)) for image, row in zip(images, variants, strict=True) for each in row]
    assert sum(turned) == len(seen) - sum(seen)


def test_captions_say_what_mixed_images_count_for(monkeypatch, tmp_path):
    model = MLPClassifier(hidden_sizes=[4], mixup=1.0, label_smoothing=0.1)
    (_, labels), variants, captions, _ = drawn(monkeypatch, tmp_path, model)
    assert not torch.equal(variants[:, 1:], variants[:, :1].expand_as(variants[:, 1:]))
    for row in captions:
        assert all(caption.startswith(row[0]) for caption in row)  # its own class counts most
        for caption in row[1:]:
            parts = [int(line.rpartition(" ")[2][:-1]) for line in caption.splitlines()]
            assert sum(parts) == pytest.approx(92 if len(parts) > 1 else 91, abs=1)
    assert any("\n" in caption for row in captions for caption in row)
    assert len(labels) == len(captions)


def test_somebodys_data_is_refused():
    trainer = Trainer(logger=False, callbacks=[TrainingImages()], enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ValueError, match="expected a CIFAR10DataModule, got BoringDataModule"):
        trainer.fit(BoringModel(), BoringDataModule())
