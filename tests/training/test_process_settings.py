"""What a training changes for the whole process lasts as long as the training, however it ends."""

import pytest
import torch
from conftest import SMALL
from lightning.pytorch import Callback, Trainer

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.training.execution import Executor

FLAGS = [*SMALL, "--model.hidden_sizes=1x8", "--trainer.max_epochs=2", "--execution.compile=never"]
HIGH = "--execution.float32_matmul_precision=high"


class Look(Callback):
    """Notes torch's precision in each training and validation batch, and may fail."""

    def __init__(self, fails=False):
        self.seen, self.fails = set(), fails

    def on_train_batch_end(self, *args):
        self.seen.add(torch.get_float32_matmul_precision())
        if self.fails:
            raise RuntimeError("on purpose")

    def on_validation_batch_end(self, trainer, *args):
        if not trainer.sanity_checking:
            self.seen.add(torch.get_float32_matmul_precision())


@pytest.fixture(autouse=True)
def _medium():
    """A program's own setting."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("precision", ["highest", "high", None])
def test_the_precision_is_that_of_the_training(precision, fails):
    module, look = MLPClassifier(hidden_sizes="1x8"), Look(fails)
    module.executor = Executor("never", float32_matmul_precision=precision)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20)
    trainer = Trainer(max_epochs=1, callbacks=[look], accelerator="cpu", logger=False, enable_checkpointing=False)
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data)
    assert look.seen == {precision or "medium"}
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_keeps_the_precision(run, tmp_path):
    line = "1 thread, float32 products in high precision"
    assert line in run("fit", *FLAGS, HIGH, "--trainer.max_steps=3")
    last = f"--ckpt_path={next(tmp_path.rglob('last.ckpt'))}"
    assert line in run("fit", *FLAGS, last)
    assert "in highest precision" in run("fit", *FLAGS, last, "--execution.float32_matmul_precision=highest")


@pytest.mark.filterwarnings("ignore")
def test_a_precision_set_for_one_kind_of_device_is_left_alone(run):
    """Torch raises if asked for the precision then."""
    before, torch.backends.mkldnn.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision, "ieee"
    try:
        assert "Training steps: plain, 1 thread\n" in run("fit", *FLAGS)
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
