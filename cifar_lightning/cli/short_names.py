"""Importing this makes the callbacks known that options name without a path, as in `--trainer.callbacks+=LRFinder`."""
# ruff: noqa: F401 (jsonargparse looks for short names among the classes that are imported)

from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor

from cifar_lightning.callbacks.distillation import Distillation
from cifar_lightning.callbacks.freeze_pretrained import FreezePretrained
from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.callbacks.signal_picture import SignalPicture
