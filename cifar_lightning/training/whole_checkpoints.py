"""Checkpoints that are whole or not there."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cifar_lightning.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint in the folder that it is for, and puts it in the place of the old one when it is whole.

    Lightning's own writes in TMPDIR. Where that is another file system, a training that dies while it copies the file
    from there leaves half of it in the place of the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `TorchCheckpointIO`, which writes what is not for a folder of this machine."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer hides the system's reason for an error, such as a full disk
        torch.save(checkpoint, content)
        with replacing(Path(path)) as beside:
            beside.write_bytes(content.getbuffer())
