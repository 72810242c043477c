"""`cifar-lightning plot-schedule --config one_cycle`: plot the learning rate of each step, without training."""

from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "plot-schedule",
    SchedulePlot,
    "Plot a config's learning rate, and its momentum if that changes, step by step, without training.",
    {},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
