"""Writes checkpoints atomically."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cifar_lightning.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its target and replaces the old one only once it is complete.

    Lightning writes to TMPDIR first. If that is another file system, a process that dies while copying the file from
    there leaves half of it in place of the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `TorchCheckpointIO`, which still handles paths that are not local."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer hides the system's reason for an error, such as a full disk
        torch.save(checkpoint, content)
        with replacing(Path(path)) as beside:
            beside.write_bytes(content.getbuffer())
