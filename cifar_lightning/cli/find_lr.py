"""`cifar-lightning find-lr --config selu`: sweep the learning rate, print what each rule suggests, and stop."""

from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "find-lr",
    LRFinder,
    "Sweep the learning rate of a config before its training, and suggest one. Nothing is trained.",
    {"apply": True, "stop": True},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
