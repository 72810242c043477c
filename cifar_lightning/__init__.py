"""The deep multilayer perceptron of the CIFAR-10 exercise, piece by piece.

The names below need torch only. `MLPClassifier` and `CIFAR10DataModule` need Lightning, which is imported when they
are first asked for.
"""

from typing import TYPE_CHECKING, Any

from cifar_lightning.alpha_dropout import AlphaDropout, alpha_dropout
from cifar_lightning.initializers import initialize_, variance_scaling_
from cifar_lightning.mc_dropout import MCPrediction, mc_dropout, mc_predict
from cifar_lightning.mlp import DeepMLP
from cifar_lightning.schedules import Constant, OneCycle
from cifar_lightning.standardize import Standardize, compute_statistics

if TYPE_CHECKING:
    from cifar_lightning.classifier import MLPClassifier
    from cifar_lightning.datamodule import CIFAR10DataModule

__all__ = [
    "AlphaDropout",
    "CIFAR10DataModule",
    "Constant",
    "DeepMLP",
    "MCPrediction",
    "MLPClassifier",
    "OneCycle",
    "Standardize",
    "alpha_dropout",
    "compute_statistics",
    "initialize_",
    "mc_dropout",
    "mc_predict",
    "variance_scaling_",
]


def __getattr__(name: str) -> Any:
    if name == "MLPClassifier":
        from cifar_lightning.classifier import MLPClassifier

        return MLPClassifier
    if name == "CIFAR10DataModule":
        from cifar_lightning.datamodule import CIFAR10DataModule

        return CIFAR10DataModule
    raise AttributeError(f"module 'cifar_lightning' has no attribute {name!r}")
