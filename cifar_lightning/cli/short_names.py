"""Import this so that options can name callbacks without a path, as in `--trainer.callbacks+=LRFinder`."""
# ruff: noqa: F401 (jsonargparse resolves short names among imported classes)

from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor

from cifar_lightning.callbacks.distillation import Distillation
from cifar_lightning.callbacks.freeze_pretrained import FreezePretrained
from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.callbacks.signal_picture import SignalPicture
