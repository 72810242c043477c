"""`cifar-lightning signals --config selu`: plot the signals in an untrained network."""

from cifar_lightning.callbacks.signal_picture import SignalPicture
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "signals",
    SignalPicture,
    "Plot mean and standard deviation of activations and gradients, layer by layer, in a config's untrained network.",
    {"every_n_epochs": 1, "stop": True},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
