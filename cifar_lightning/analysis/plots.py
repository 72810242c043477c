"""All pictures of this package by name; each is drawn by the module of its subject, in the style of `style.py`."""

from cifar_lightning.analysis.curve_plots import draw_learning_curves, draw_sweep_curves
from cifar_lightning.analysis.evaluation_plots import draw_confusion_matrix, draw_reliability
from cifar_lightning.analysis.image_plots import draw_images
from cifar_lightning.analysis.signal_plots import draw_signals, plot_signals
from cifar_lightning.analysis.variant_plots import draw_variants
from cifar_lightning.optim.rate_plots import draw_schedule, draw_sweep

__all__ = [
    "draw_confusion_matrix",
    "draw_images",
    "draw_learning_curves",
    "draw_reliability",
    "draw_schedule",
    "draw_signals",
    "draw_sweep",
    "draw_sweep_curves",
    "draw_variants",
    "plot_signals",
]
