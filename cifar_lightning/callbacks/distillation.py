"""Distillation: a network learns from the predictions of trained networks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import glob
from hashlib import sha256
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_lightning.callbacks.trained_networks import check_alike, load_trained
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.messages import say
from cifar_lightning.training.stacked_classifier import StackedClassifier


class Distillation(Callback):
    """Train an `MLPClassifier`, or each one in a stack, on trained networks' predictions as well as on the labels.

    The teachers see the same images as the network, after augmentation, mixup and CutMix. Their mean probabilities
    replace a share of the targets (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, at temperature 1). They are
    not trained. A resumed run has the same teachers as before, whatever else the patterns match by then.

    Args:
        teachers: Checkpoints, or patterns such as runs/bottleneck/*/checkpoints/last.ckpt, which stand for all
            matching files. Several teachers form an ensemble.
        weight: Share of the target that comes from the teachers, 0 to 1.
        precision: Precision of the teachers; bf16-mixed is faster on processors and GPUs that support it.

    Raises:
        ValueError: If there are no teachers or the weight is out of range; during `fit`, if a file is not a checkpoint,
            if a teacher's classes or image size differ, or if a resumed run's teachers are not those it began with.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import Distillation
        >>> trainer = Trainer(logger=False, callbacks=[Distillation(["teacher.ckpt"], weight=0.5)])
    """

    def __init__(
        self, teachers: list[str], weight: float = 0.7, precision: Literal["32-true", "bf16-mixed"] = "32-true"
    ) -> None:
        if not teachers:
            raise ValueError("distillation needs at least one teacher's checkpoint, got none")
        if not 0 <= weight <= 1:
            raise ValueError(f"the teachers' weight must be in [0, 1], got {weight}")
        self.teachers, self.weight, self.precision = list(teachers), weight, precision
        self._state: dict[str, Any] = {}  # the patterns, the files that they stood for, and digests of these

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the teachers of an earlier run; a resume restores its own after this."""
        if stage == "fit":
            self._state = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the teachers, and use their predictions in the targets from now on."""
        students = _students(pl_module)
        if not students:
            raise ValueError(f"distillation teaches an MLPClassifier, got {type(pl_module).__name__}")
        began, paths = self._state, self._find_files()
        networks, digests = [], []
        for path in paths:
            network, checkpoint = load_trained(path, type(students[0]))
            check_alike(path, network, students[0])
            digests.append(_digest(checkpoint["state_dict"]))
            networks.append(network.to(pl_module.device))
            if trainer.is_global_zero:  # a pattern may match a run that was interrupted early
                say(f"Teacher after {checkpoint['global_step']:,} steps: {path}", wrap=False)
        if began:
            _check_unchanged(paths, digests, began)
        self._state = {"patterns": self.teachers, "paths": paths, "digests": digests}
        teacher = Teacher(networks, self.precision)
        for student in students:
            student.soft_labels = replace(student.soft_labels, teacher=teacher, teacher_weight=self.weight)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the teacher."""
        for student in _students(pl_module):
            student.soft_labels = replace(student.soft_labels, teacher=None, teacher_weight=0.0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the teacher."""
        self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Which networks teach."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which networks taught the resumed run."""
        self._state = dict(state_dict)

    def _find_files(self) -> list[str]:
        """The teachers' files: those of the resumed run, unless it is resumed with other patterns."""
        if self._state.get("patterns") == self.teachers:
            return list(self._state["paths"])
        return [path for pattern in self.teachers for path in sorted(glob(pattern)) or [pattern]]


class Teacher:
    """Predicts the mean probabilities of trained networks.

    Args:
        networks: At least one network.
        precision: Precision to predict in.
    """

    def __init__(self, networks: Sequence[MLPClassifier], precision: Literal["32-true", "bf16-mixed"]) -> None:
        self._networks, self._is_mixed = list(networks), precision == "bf16-mixed"

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), 0 to 255, to probabilities (B, num_classes)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._is_mixed):
            return torch.stack([network.predict_proba(images).float() for network in self._networks]).mean(0)


def _students(module: LightningModule) -> list[MLPClassifier]:
    each = module.classifiers if isinstance(module, StackedClassifier) else [module]
    return [student for student in each if isinstance(student, MLPClassifier)]


def _digest(state: Mapping[str, Any]) -> str:
    """A digest of all tensors in a network's state, by name."""
    digest = sha256()
    for name in sorted(state):
        if isinstance(value := state[name], Tensor):
            digest.update(name.encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_unchanged(paths: Sequence[str], digests: Sequence[str], began: Mapping[str, Any]) -> None:
    """Check that the teachers have the weights of those that a resumed run began with.

    Raises:
        ValueError: If they do not.
    """
    if len(digests) != len(began["digests"]):
        raise ValueError(
            f"can't resume with other teachers: expected the {len(began['digests'])} that the run began with, "
            f"{', '.join(began['paths'])}; got {len(paths)}, {', '.join(paths)}"
        )
    for path, expected, received in zip(paths, began["digests"], digests, strict=True):
        if expected != received:
            raise ValueError(
                f"can't resume with other teachers: expected {path} to have the weights that the run began with, of "
                f"SHA-256 {expected[:16]}; got {received[:16]}. Restore the file, or start a new run"
            )
