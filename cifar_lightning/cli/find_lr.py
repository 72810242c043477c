"""`cifar-lightning find-lr --config selu`: sweep the learning rate and print each rule's suggestion."""

from cifar_lightning.callbacks.lr_finder import LRFinder
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "find-lr",
    LRFinder,
    "Run a learning-rate range test on a config and suggest a learning rate. Nothing is trained.",
    {"apply": True, "stop": True},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
