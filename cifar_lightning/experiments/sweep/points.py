"""Builds the networks of a sweep from a grid of options."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import seed_everything

from cifar_lightning.experiments.grid import Point
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.copies import Copy
from cifar_lightning.training.lightning_internals import same_global_seed
from cifar_lightning.training.random_state import collect_generators, restore_generators

#: Options in which the networks of a stack may differ, including their sub-options.
STACKABLE = (
    "seed_everything",
    "model.lr",
    "model.optimizer",
    "model.schedule",
    "model.init",
    "model.output_init",
    "model.dropout_p",
    "model.max_norm",
    "model.l1",
    "model.l2",
)
#: The optimizer that calls the network several times per step.
UNSUITABLE_OPTIMIZER = "LBFGS"


def refuse_what_does_not_stack(options: Iterable[str]) -> None:
    """Reject options that would give networks different shapes or different data.

    Raises:
        ValueError: If there are any.
    """
    for option in options:
        if not any(option == known or option.startswith(f"{known}.") for known in STACKABLE):
            raise ValueError(
                f"{option} can't vary in a sweep, which trains all networks as one: expected one of "
                f"{', '.join(STACKABLE)}; got {option}. A study trains one network after another: "
                f"cifar-lightning study --vary '{{{option}: [...]}}'"
            )


def make_copies(points: Sequence[tuple[Point, int, Mapping[str, Any]]]) -> list[Copy]:
    """Build the network of each point as its own run would; random generators are restored.

    Args:
        points: The points, each with its seed and its classifier's arguments.

    Raises:
        ValueError: If an argument is out of range, or an optimizer can't be stacked.
    """
    copies = []
    generators = collect_generators()
    try:
        with same_global_seed():
            for point, seed, arguments in points:
                seed_everything(seed, verbose=False)
                copies.append(Copy(point.name, MLPClassifier(**arguments), seed, point.values))
    finally:
        restore_generators(generators)
    for each in copies:
        if each.classifier.hparams["optimizer"]["class_path"].endswith(f".{UNSUITABLE_OPTIMIZER}"):
            raise ValueError(
                f"{UNSUITABLE_OPTIMIZER} does not work in a sweep, since it calls a network several times per step. "
                "Choose another optimizer"
            )
    return copies
