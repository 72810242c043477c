"""A deep multilayer perceptron for CIFAR-10, and its parts for use in other programs.

Each name below is imported on first use, so importing the package takes no time. `MLPClassifier`,
`CIFAR10DataModule`, `Distillation`, `LRFinder`, `Pretrained`, `FreezePretrained`, `RunProgressBar`, `RunReport` and
`SignalPicture` need Lightning, and `plot_signals` needs matplotlib; all others need torch only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_lightning.analysis.mc_dropout import MCPrediction, mc_dropout, mc_predict
    from cifar_lightning.analysis.signal_plots import plot_signals
    from cifar_lightning.analysis.signals import LayerSignal, measure_signals
    from cifar_lightning.callbacks.distillation import Distillation
    from cifar_lightning.callbacks.freeze_pretrained import FreezePretrained
    from cifar_lightning.callbacks.lr_finder import LRFinder
    from cifar_lightning.callbacks.pretrained import Pretrained
    from cifar_lightning.callbacks.progress_bar import RunProgressBar
    from cifar_lightning.callbacks.report import RunReport
    from cifar_lightning.callbacks.signal_picture import SignalPicture
    from cifar_lightning.compiled.step import CompiledStep
    from cifar_lightning.export.image_network import ImageNetwork
    from cifar_lightning.export.load import load_network
    from cifar_lightning.nn.alpha_dropout import AlphaDropout, alpha_dropout
    from cifar_lightning.nn.initializers import initialize_, variance_scaling_
    from cifar_lightning.nn.mlp import DeepMLP
    from cifar_lightning.nn.standardize import Standardize, compute_statistics
    from cifar_lightning.nn.transfer import copy_hidden_layers
    from cifar_lightning.optim.lr_range_test import LRSweep, find_lr
    from cifar_lightning.optim.muon import MuonAdamW
    from cifar_lightning.optim.schedules import (
        Constant,
        Cosine,
        Exponential,
        OneCycle,
        Performance,
        PiecewiseConstant,
        Power,
    )
    from cifar_lightning.training.classifier import MLPClassifier
    from cifar_lightning.training.datamodule import CIFAR10DataModule

__version__ = "0.1.0"

__all__ = [
    "AlphaDropout",
    "CIFAR10DataModule",
    "CompiledStep",
    "Constant",
    "Cosine",
    "DeepMLP",
    "Distillation",
    "Exponential",
    "FreezePretrained",
    "ImageNetwork",
    "LRFinder",
    "LRSweep",
    "LayerSignal",
    "MCPrediction",
    "MLPClassifier",
    "MuonAdamW",
    "OneCycle",
    "Performance",
    "PiecewiseConstant",
    "Power",
    "Pretrained",
    "RunProgressBar",
    "RunReport",
    "SignalPicture",
    "Standardize",
    "alpha_dropout",
    "compute_statistics",
    "copy_hidden_layers",
    "find_lr",
    "initialize_",
    "load_network",
    "mc_dropout",
    "mc_predict",
    "measure_signals",
    "plot_signals",
    "variance_scaling_",
]

_SCHEDULES = ("Constant", "Cosine", "Exponential", "OneCycle", "Performance", "PiecewiseConstant", "Power")
_MODULES = {
    "AlphaDropout": "nn.alpha_dropout",
    "CIFAR10DataModule": "training.datamodule",
    "CompiledStep": "compiled.step",
    "DeepMLP": "nn.mlp",
    "Distillation": "callbacks.distillation",
    "FreezePretrained": "callbacks.freeze_pretrained",
    "ImageNetwork": "export.image_network",
    "LRFinder": "callbacks.lr_finder",
    "LRSweep": "optim.lr_range_test",
    "LayerSignal": "analysis.signals",
    "MCPrediction": "analysis.mc_dropout",
    "MLPClassifier": "training.classifier",
    "MuonAdamW": "optim.muon",
    "Pretrained": "callbacks.pretrained",
    "RunProgressBar": "callbacks.progress_bar",
    "RunReport": "callbacks.report",
    "SignalPicture": "callbacks.signal_picture",
    "Standardize": "nn.standardize",
    "alpha_dropout": "nn.alpha_dropout",
    "compute_statistics": "nn.standardize",
    "copy_hidden_layers": "nn.transfer",
    "find_lr": "optim.lr_range_test",
    "initialize_": "nn.initializers",
    "load_network": "export.load",
    "mc_dropout": "analysis.mc_dropout",
    "mc_predict": "analysis.mc_dropout",
    "measure_signals": "analysis.signals",
    "plot_signals": "analysis.signal_plots",
    "variance_scaling_": "nn.initializers",
    **dict.fromkeys(_SCHEDULES, "optim.schedules"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"cifar_lightning.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'cifar_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
