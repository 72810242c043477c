"""`cifar-lightning training-images --config best/deep`: draw images as a training would be shown them, and stop."""

from cifar_lightning.callbacks.training_images import TrainingImages
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "training-images",
    TrainingImages,
    "Draw the first training images as a config's network is shown them: mirrored, moved and mixed.",
    {},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
