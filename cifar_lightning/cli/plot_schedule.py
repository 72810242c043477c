"""`cifar-lightning plot-schedule --config one_cycle`: draw the learning rate of each step, and stop."""

from cifar_lightning.callbacks.schedule_plot import SchedulePlot
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "plot-schedule",
    SchedulePlot,
    "Draw the learning rate of a config's training, and the momentum if that moves, step by step.",
    {},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
