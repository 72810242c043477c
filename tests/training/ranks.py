"""Two processes train one network: as one process would with the batches of both, and so that each knows the other."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from cifar_lightning import CIFAR10DataModule, LRFinder, MLPClassifier
from cifar_lightning.callbacks.report import RunReport
from cifar_lightning.training.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.resume import ExactResume

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.filterwarnings("ignore")]

TRAIN = 250  # images
TWO = {"devices": 2, "strategy": "ddp_fork"}


class Diary(Callback):
    """Each rank writes down the images that it saw, the gradients before each step, and what it measured."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.images, self.gradients, self.metrics, self.masks = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch[0].flatten(1)[:, :8].clone())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([parameter.grad.clone() for parameter in pl_module.parameters()])

    def on_train_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.masks = torch.rand(5)
        self.write(trainer)

    def on_test_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.write(trainer)

    def write(self, trainer):
        self.folder.mkdir(exist_ok=True)
        parts = {name: getattr(self, name) for name in ("images", "gradients", "metrics", "masks")}
        torch.save(parts, self.folder / f"{trainer.global_rank}.pt")

    @classmethod
    def read(cls, folder):
        return [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("*.pt"))]


def make_data(**options):
    sizes = {"source": "synthetic", "synthetic_size": TRAIN + 51, "val_size": 51, "order_seed": 3}
    return CIFAR10DataModule(**sizes | options)


def make_model(**options):
    torch.manual_seed(3)
    return MLPClassifier(**{"hidden_sizes": [8, 8], "lr": 0.01, "optimizer": "SGD"} | options)


def make_trainer(folder, callbacks=(), **options):
    flags = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        **flags | {"accelerator": "cpu", "default_root_dir": folder, "num_sanity_val_steps": 0} | options,
        callbacks=[RunReport(), ExactResume(), *callbacks],
    )


def fit(folder, batch_size, *callbacks, data=None, model=None, checkpoint=None, **options):
    """Train, and return what each rank wrote down."""
    trainer = make_trainer(folder, [Diary(folder), *callbacks], **options)
    trainer.fit(model or make_model(), data or make_data(batch_size=batch_size), ckpt_path=checkpoint)
    return Diary.read(folder)


def test_two_times_64_images_make_the_step_of_128():
    (one,) = fit("one", 128, enable_checkpointing=False)
    two = fit("two", 64, enable_checkpointing=False, **TWO)
    assert [len(rank["gradients"]) for rank in two] == [len(one["gradients"])] * 2 == [2, 2]
    first, second = (rank["gradients"] for rank in two)
    for step in range(2):
        for whole, ours, theirs in zip(one["gradients"][step], first[step], second[step], strict=True):
            assert torch.equal(ours, theirs)
            if step == 0:  # the last is of 122 images, or of 2 x 61
                torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-7)
    assert two[0]["metrics"] == two[1]["metrics"]
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert two[0]["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-4)


@pytest.mark.parametrize("odd", [0, 1])
def test_each_image_is_seen_once_an_epoch(odd):
    """But for one, which must be seen twice for both ranks to take as many."""
    size = TRAIN + 51 + odd
    two = fit("two", None, data=make_data(batch_size=64, synthetic_size=size), enable_checkpointing=False, **TWO)
    seen = [tuple(image) for rank in two for batch in rank["images"] for image in batch.tolist()]
    data = make_data(synthetic_size=size)
    data.setup()
    every = {tuple(image) for image in data.first_training_images(TRAIN + odd)[0].flatten(1)[:, :8].tolist()}
    assert set(seen) == every
    assert len(seen) == len(every) + odd


def test_ranks_drop_other_units():
    two = fit("two", 64, enable_checkpointing=False, **TWO)
    assert not torch.equal(two[0]["masks"], two[1]["masks"])


def test_test_metrics_count_no_image_twice():
    """Of 60 test images in batches of 7, the second rank has no less than the first, and none twice."""
    data = make_data(eval_batch_size=7)
    data.setup()
    measured = []
    for folder, options in (("one", {}), ("two", TWO)):
        make_trainer(folder, [Diary(folder)], enable_checkpointing=False, **options).test(make_model(), data)
        measured.append([rank["metrics"] for rank in Diary.read(folder)])
    (one,), (first, second) = measured
    assert len(data.images.test_labels) == 60
    assert first == second == pytest.approx(one, rel=1e-5)


class Slip(nn.Module):
    """The identity up to the step from which on one rank's images are NaN."""

    def __init__(self, step, rank):
        super().__init__()
        self.step, self.rank, self.count = step, rank, 0

    def forward(self, inputs):
        self.count += self.training
        slips = self.count >= self.step and torch.distributed.get_rank() == self.rank
        return inputs * torch.nan if slips else inputs


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_no_number_on_one_rank_ends_all_with_its_message(rank):
    model = make_model()
    model.network.input.append(Slip(3, rank))
    with pytest.raises(Exception, match=rf"the loss is nan in step 3 \(.*rank {rank}.* is network\.input\.\d\."):
        fit("two", 32, BestCheckpoint(), model=model, **TWO)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("steps", [3, 4])  # in an epoch, and at its end
def test_a_training_goes_on_with_another_number_of_devices(before, after, steps):
    def train(folder, devices, **options):
        flags = TWO if devices == 2 else {}
        data = make_data(batch_size=64, batch_per="step")
        fit(folder, None, LastCheckpoint(), data=data, max_epochs=-1, **flags, **options)
        (last,) = Path(folder).rglob("last.ckpt")
        return last, torch.load(last, weights_only=True)

    last, _ = train("first", before, max_steps=steps)
    _, ours = train("second", after, max_steps=10, checkpoint=last)
    _, theirs = train("whole", before, max_steps=10)
    for name, value in theirs["state_dict"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    rows = [state["callbacks"]["RunReport"]["rows"] for state in (ours, theirs)]
    for mine, other in zip(*rows, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-4)


def test_other_steps_are_refused():
    fit("first", 64, LastCheckpoint(), max_epochs=-1, max_steps=2, **TWO)
    (last,) = Path("first").rglob("last.ckpt")
    with pytest.raises(ValueError, match="steps of 128 images again; got 1 with steps of 64"):
        fit("second", 64, checkpoint=last, max_epochs=2)
    fit("second", 128, checkpoint=last, max_epochs=2)


def test_devices_that_can_not_share_a_step_are_refused():
    data = make_data(batch_size=63, batch_per="step")
    with pytest.raises(Exception, match="2 devices can't share a step evenly: batch_size must be a multiple"):
        fit("two", None, data=data, **TWO)
    with pytest.raises(ValueError, match="unknown batch_per"):
        make_data(batch_per="rank")


def test_everything_on_with_two_processes(capfd):
    """LRFinder, 1cycle, early stopping and averages of batch norm, on both ranks; the first alone writes."""
    model = make_model(schedule="OneCycle", normalization="batch", dropout="alpha")
    callbacks = [LRFinder(num_steps=20), EarlyStopping("val_loss", patience=1, min_delta=9.0), BestCheckpoint()]
    two = fit("two", 32, *callbacks, model=model, max_epochs=5, **TWO)
    said = capfd.readouterr().out
    assert said.count("LRFinder: training with lr") == 1
    assert said.count("stopped early") == 1
    assert said.count("epoch   1") == said.count("epoch   2") == 1
    assert "epoch   3" not in said
    assert two[0]["metrics"] == two[1]["metrics"]
    assert len(list(Path("two").rglob("best.ckpt"))) == 1
