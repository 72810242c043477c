"""`cifar-lightning training-images --config best/deep`: show augmented training images, without training."""

from cifar_lightning.callbacks.training_images import TrainingImages
from cifar_lightning.cli.callback_command import CallbackCommand

COMMAND = CallbackCommand(
    "training-images",
    TrainingImages,
    "Show the first training images as a config's network would see them: mirrored, shifted and mixed.",
    {},
)
make_parser, main = COMMAND.make_parser, COMMAND.main
