"""The deep multilayer perceptron of the CIFAR-10 exercise, piece by piece.

The names below need torch only. `MLPClassifier`, `CIFAR10DataModule`, `LRFinder` and `FreezePretrained` need Lightning,
which is imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cifar_lightning.alpha_dropout import AlphaDropout, alpha_dropout
from cifar_lightning.compiled_step import CompiledStep
from cifar_lightning.initializers import initialize_, variance_scaling_
from cifar_lightning.lr_sweep import LRSweep, find_lr
from cifar_lightning.mc_dropout import MCPrediction, mc_dropout, mc_predict
from cifar_lightning.mlp import DeepMLP
from cifar_lightning.pretrained import copy_hidden_layers
from cifar_lightning.schedules import (
    Constant,
    Cosine,
    Exponential,
    OneCycle,
    Performance,
    PiecewiseConstant,
    Power,
)
from cifar_lightning.signals import LayerSignal, measure_signals
from cifar_lightning.standardize import Standardize, compute_statistics

if TYPE_CHECKING:
    from cifar_lightning.classifier import MLPClassifier
    from cifar_lightning.datamodule import CIFAR10DataModule
    from cifar_lightning.freeze_pretrained import FreezePretrained
    from cifar_lightning.lr_finder import LRFinder

_LIGHTNING = {
    "CIFAR10DataModule": "cifar_lightning.datamodule",
    "FreezePretrained": "cifar_lightning.freeze_pretrained",
    "LRFinder": "cifar_lightning.lr_finder",
    "MLPClassifier": "cifar_lightning.classifier",
}

__all__ = [
    "AlphaDropout",
    "CIFAR10DataModule",
    "CompiledStep",
    "Constant",
    "Cosine",
    "DeepMLP",
    "Exponential",
    "FreezePretrained",
    "LRFinder",
    "LRSweep",
    "LayerSignal",
    "MCPrediction",
    "MLPClassifier",
    "OneCycle",
    "Performance",
    "PiecewiseConstant",
    "Power",
    "Standardize",
    "alpha_dropout",
    "compute_statistics",
    "copy_hidden_layers",
    "find_lr",
    "initialize_",
    "mc_dropout",
    "mc_predict",
    "measure_signals",
    "variance_scaling_",
]


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        return getattr(import_module(_LIGHTNING[name]), name)
    raise AttributeError(f"module 'cifar_lightning' has no attribute {name!r}")
