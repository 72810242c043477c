"""What an exported file says of itself."""

import json
from typing import Any

from cifar_lightning.export.image_network import ImageNetwork

#: The key of a file's metadata under which there is a JSON text of all that is not a tensor.
KEY = "cifar_lightning"


def describe(network: ImageNetwork) -> dict[str, str]:
    """Metadata, each a JSON text: the names of the classes, an image's shape, and what `ImageNetwork` takes."""
    parts: dict[str, Any] = {"classes": network.classes, "shape": network.shape, KEY: {"model": network.options}}
    return {name: json.dumps(part) for name, part in parts.items()}
