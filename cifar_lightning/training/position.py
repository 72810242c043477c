"""Where a training stood when it wrote a checkpoint, as Lightning 2.6's counters in the checkpoint tell it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Position(NamedTuple):
    """Where a training stood when it wrote a checkpoint."""

    epoch: int  # epochs that were finished
    batch: int  # batches of the next epoch that were trained on
    ended: bool  # whether these are all of them, and only the epoch's end is missing
    validated: bool  # whether a validation that was due after the last of them is done


def position_of(checkpoint: Mapping[str, Any]) -> Position:
    """Where the training stood, whichever hook wrote the checkpoint.

    Lightning's counters tell it, but differ by hook: in `on_train_batch_end` a batch is processed and not completed,
    in `on_train_epoch_end` an epoch. An epoch that was cut short counts as processed, though it is to be continued.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    batches, validation = (loops[f"epoch_loop.{name}batch_progress"] for name in ("", "val_loop."))
    current, validated = batches["current"], validation["current"]
    epoch, batch = epochs["processed"], current["processed"]
    ended = batches["is_last_batch"] and current["ready"] == batch  # or it is the next batch that is the last
    if epochs["ready"] == epoch:  # the epoch's end was processed
        epoch, batch = (epoch - 1, batch) if batch and not ended else (epoch, 0)
    elif epochs["ready"] != epochs["started"]:
        batch = 0  # the counters of the epoch before have not been reset yet
    done = current["completed"] == current["processed"] and validation["is_last_batch"]
    return Position(epoch, batch, ended and batch > 0, done and validated["ready"] == validated["completed"])


def rewrite_position(checkpoint: dict[str, Any]) -> None:
    """Rewrite the counters so that Lightning goes on from `position_of` the checkpoint.

    Of its own it takes some for the end of an epoch, or counts an epoch or a batch twice (Lightning 2.6:
    `_FitLoop.update_restart_stage`). It does right by two: between epochs, and in an epoch after a whole batch.
    """
    epoch, batch, ended, validated = position_of(checkpoint)
    loops = checkpoint["loops"]["fit_loop"]
    started = epoch + (batch > 0)
    for counts in loops["epoch_progress"].values():
        counts |= {"ready": started, "started": started, "processed": epoch, "completed": epoch}
    progress = loops["epoch_loop.batch_progress"]
    for counts, count in ((progress["total"], progress["total"]["processed"]), (progress["current"], batch)):
        counts |= dict.fromkeys(counts, count)
    progress["is_last_batch"] = ended
    if not validated:  # Lightning takes this for a validation that was interrupted, and runs it if it is due
        progress = loops["epoch_loop.val_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    for progress in loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
        for counts in progress.values():
            counts |= dict.fromkeys(counts, counts["completed"])
    # A loader counts what it has handed out, which may be more than was trained on.
    for state in loops["state_dict"].get("combined_loader", []):
        if "position" in state:
            state |= {"epoch": epoch, "position": batch}
