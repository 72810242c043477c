"""A network that learns from a trained one's predictions, by plain, compiled and stacked steps."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SMALL
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from cifar_lightning import CIFAR10DataModule, Distillation, MLPClassifier
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.execution import Executor
from cifar_lightning.training.resume import ExactResume
from cifar_lightning.training.stacked_classifier import StackedClassifier


def classifier(seed=1, compile="never", **options):
    seed_everything(seed, verbose=False)
    module = MLPClassifier(**{"lr": 0.01, "optimizer": "SGD", "hidden_sizes": [20, 20]} | options)
    module.executor = Executor(compile)
    return module


def data(**options):
    return CIFAR10DataModule(source="synthetic", synthetic_size=300, val_size=60, batch_size=20, **options)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False} | quiet | options)


@pytest.fixture
def teachers(tmp_path):
    """The files of two trained networks."""
    for seed in (5, 6):
        fit = trainer()
        fit.fit(classifier(seed, lr=0.1), datamodule=data(order_seed=1))
        fit.save_checkpoint(tmp_path / f"teacher{seed}.ckpt")
    return sorted(str(path) for path in tmp_path.glob("*.ckpt"))


class FirstStep(Callback):
    """Computes what the loss of the first step should be, from the network as it was before."""

    def __init__(self, teachers, weight):
        self.teachers = [MLPClassifier.load_from_checkpoint(path, weights_only=True) for path in teachers]
        self.weight, self.expected, self.received = weight, None, None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.expected is None:
            images, labels = batch
            taught = torch.stack([teacher.predict_proba(images) for teacher in self.teachers]).mean(0)
            log_p = module(images).log_softmax(1)
            of_teachers = -(taught * log_p).sum(1).mean()
            self.expected = (1 - self.weight) * F.nll_loss(log_p, labels) + self.weight * of_teachers

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.received = outputs["loss"] if self.received is None else self.received


def test_it_says_who_teaches(teachers, capsys):
    trainer(callbacks=[Distillation([teachers[0].replace("teacher5", "teacher?")])]).fit(
        classifier(), datamodule=data()
    )
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "Teacher" in line] == [
        f"Teacher after 24 steps: {path}" for path in teachers
    ]


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_hintons(teachers, weight):
    first = FirstStep(teachers, weight)
    trainer(callbacks=[first, Distillation(teachers, weight)]).fit(classifier(), datamodule=data(order_seed=1))
    torch.testing.assert_close(first.received, first.expected)


def weights_after(module, *callbacks):
    trainer(callbacks=list(callbacks)).fit(module, datamodule=data(order_seed=1, flip=True, shift=2))
    return module.network.output.weight


def test_without_a_weight_teachers_change_nothing(teachers):
    assert torch.equal(weights_after(classifier(), Distillation(teachers, 0.0)), weights_after(classifier()))


def test_a_pattern_stands_for_all_files_that_match(teachers, tmp_path):
    by_pattern = weights_after(classifier(), Distillation([str(tmp_path / "*.ckpt")]))
    assert torch.equal(by_pattern, weights_after(classifier(), Distillation(teachers)))
    assert not torch.equal(by_pattern, weights_after(classifier(), Distillation(teachers[:1])))


@pytest.mark.slow
def test_compiled_steps_learn_the_same(teachers):
    options = {"mixup": 0.2, "label_smoothing": 0.1}
    plain = weights_after(classifier(**options), Distillation(teachers))
    compiled = weights_after(classifier(compile="always", **options), Distillation(teachers))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_each_copy_of_a_stack_is_taught(teachers):
    copies = [Copy(f"lr={lr}", classifier(lr=lr), 1) for lr in (0.001, 0.01)]
    callback = Distillation(teachers)
    trainer(callbacks=[callback]).fit(StackedClassifier(classifier(), copies), datamodule=data(order_seed=1))
    alone = classifier()
    trainer(callbacks=[callback]).fit(alone, datamodule=data(order_seed=1))
    ours = copies[1].classifier.network.output.weight
    torch.testing.assert_close(ours, alone.network.output.weight, rtol=1e-4, atol=1e-5)


def test_teachers_leave_with_the_training(teachers):
    module = classifier()
    before = set(module.state_dict())
    trainer(callbacks=[Distillation(teachers)], max_epochs=1).fit(module, datamodule=data())
    assert module.soft_labels.teacher is None
    assert set(module.state_dict()) == before


def test_the_recipe_takes_the_newest_teachers(run):
    small = [*SMALL, "--trainer.max_epochs=1", "--model.hidden_sizes=2x8"]
    run("fit", f"--config={ROOT}/configs/best/bottleneck.yaml", *small)
    said = run("fit", f"--config={ROOT}/configs/best/distilled.yaml", *small)
    assert "epoch   1" in said


@pytest.fixture
def interrupted(teachers, tmp_path):
    """A pattern of the teachers, the checkpoint of a first epoch with them, and the weights after a second one."""
    pattern = str(tmp_path / "teacher*.ckpt")
    whole = weights_after(classifier(), ExactResume(), Distillation([pattern]))
    run = trainer(callbacks=[ExactResume(), Distillation([pattern])], max_epochs=1)
    run.fit(classifier(), datamodule=data(order_seed=1, flip=True, shift=2))
    run.save_checkpoint(tmp_path / "student.ckpt")
    return pattern, tmp_path / "student.ckpt", whole


def resume(checkpoint, patterns):
    module = classifier()
    run = trainer(callbacks=[ExactResume(), Distillation(patterns)])
    run.fit(module, datamodule=data(order_seed=1, flip=True, shift=2), ckpt_path=checkpoint, weights_only=True)
    return module.network.output.weight


def test_a_resumed_run_keeps_its_teachers(interrupted, teachers, tmp_path):
    pattern, checkpoint, whole = interrupted
    shutil.copy(teachers[0], tmp_path / "teacher0.ckpt")  # which the pattern matches too
    assert torch.equal(resume(checkpoint, [pattern]), whole)
    moved = [str(shutil.move(path, tmp_path / f"moved{n}.ckpt")) for n, path in enumerate(teachers)]
    assert torch.equal(resume(checkpoint, moved), whole)  # files that are moved must be named anew


def test_a_new_run_of_the_same_callback_looks_for_its_teachers_again(interrupted, teachers, tmp_path):
    pattern, checkpoint, _ = interrupted
    callback = Distillation([pattern])
    run = trainer(callbacks=[callback])
    run.fit(classifier(), datamodule=data(), ckpt_path=checkpoint, weights_only=True)
    (tmp_path / "teacher6.ckpt").unlink()
    trainer(callbacks=[callback], max_epochs=1).fit(classifier(), datamodule=data())
    assert callback.state_dict()["paths"] == teachers[:1]


def test_a_checkpoint_of_version_0_1_0_resumes_with_what_the_patterns_match(interrupted):
    pattern, checkpoint, whole = interrupted
    content = torch.load(checkpoint, weights_only=True)
    assert content["callbacks"].pop("Distillation")
    torch.save(content, checkpoint)
    assert torch.equal(resume(checkpoint, [pattern]), whole)


@pytest.mark.parametrize(
    ("change", "others", "message"),
    [
        (lambda path: path.unlink(), [], r"no such checkpoint: .*teacher6\.ckpt"),
        (lambda path: shutil.copy(path.with_name("teacher5.ckpt"), path), [], r"expected .*teacher6\.ckpt to have the"),
        (lambda path: None, ["teacher6.ckpt", "teacher5.ckpt"], r"expected .*teacher6\.ckpt to have the weights"),
        (lambda path: None, ["teacher5.ckpt"], r"other teachers: expected the 2 that .*; got 1, .*teacher5\.ckpt$"),
    ],
)
def test_a_resume_with_other_teachers_is_refused(interrupted, tmp_path, change, others, message):
    pattern, checkpoint, _ = interrupted
    change(tmp_path / "teacher6.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        resume(checkpoint, [str(tmp_path / name) for name in others] or [pattern])
    assert "\n" not in str(caught.value)


class Other(LightningModule):
    def training_step(self, batch):
        raise NotImplementedError

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: classifier(num_classes=2), {"classes": ["disc", "ring"]}, "must have the network's classes"),
        (lambda: Other(), {}, "teaches an MLPClassifier, got Other"),
    ],
)
def test_who_can_not_be_taught(teachers, module, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(callbacks=[Distillation(teachers)]).fit(module(), datamodule=data(**options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one teacher's checkpoint, got none"),
        ((["a.ckpt"], -0.1), r"in \[0, 1\], got -0\.1"),
        ((["a.ckpt"], 1.5), r"in \[0, 1\], got 1\.5"),
        ((["a.ckpt"], float("nan")), r"in \[0, 1\], got nan"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        Distillation(*arguments)


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such checkpoint: .*gone\.ckpt"):
        trainer(callbacks=[Distillation([str(tmp_path / "gone.ckpt")])]).fit(classifier(), datamodule=data())
