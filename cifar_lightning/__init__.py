"""The deep multilayer perceptron of the CIFAR-10 exercise, piece by piece.

The names below need torch only. `MLPClassifier`, `CIFAR10DataModule`, `LRFinder`, `Pretrained` and `FreezePretrained`
need Lightning, which is imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cifar_lightning.analysis.mc_dropout import MCPrediction, mc_dropout, mc_predict
from cifar_lightning.analysis.signals import LayerSignal, measure_signals
from cifar_lightning.compiled.step import CompiledStep
from cifar_lightning.nn.alpha_dropout import AlphaDropout, alpha_dropout
from cifar_lightning.nn.initializers import initialize_, variance_scaling_
from cifar_lightning.nn.mlp import DeepMLP
from cifar_lightning.nn.standardize import Standardize, compute_statistics
from cifar_lightning.nn.transfer import copy_hidden_layers
from cifar_lightning.optim.lr_range_test import LRSweep, find_lr
from cifar_lightning.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    OneCycle,
    Performance,
    PiecewiseConstant,
    Power,
)

if TYPE_CHECKING:
    from cifar_lightning.callbacks.freeze_pretrained import FreezePretrained
    from cifar_lightning.callbacks.lr_finder import LRFinder
    from cifar_lightning.callbacks.pretrained import Pretrained
    from cifar_lightning.training.classifier import MLPClassifier
    from cifar_lightning.training.datamodule import CIFAR10DataModule

_LIGHTNING = {
    "CIFAR10DataModule": "cifar_lightning.training.datamodule",
    "FreezePretrained": "cifar_lightning.callbacks.freeze_pretrained",
    "LRFinder": "cifar_lightning.callbacks.lr_finder",
    "MLPClassifier": "cifar_lightning.training.classifier",
    "Pretrained": "cifar_lightning.callbacks.pretrained",
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
    "Pretrained",
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
