"""Finds the position of a run in a checkpoint from Lightning 2.6's counters."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Position(NamedTuple):
    """The position of a run when it wrote a checkpoint."""

    epoch: int  # number of finished epochs
    batch: int  # number of batches trained on in the next epoch
    ended: bool  # whether these are all its batches, and only the epoch's end is missing
    validated: bool  # whether a validation that was due after the last batch is done


def position_of(checkpoint: Mapping[str, Any]) -> Position:
    """The position of the run, whichever hook wrote the checkpoint.

    Lightning's counters depend on the hook: in `on_train_batch_end` a batch is processed but not completed, and in
    `on_train_epoch_end` an epoch. An epoch that was cut short counts as processed even though it will be continued.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    batches, validation = (loops[f"epoch_loop.{name}batch_progress"] for name in ("", "val_loop."))
    current, validated = batches["current"], validation["current"]
    epoch, batch = epochs["processed"], current["processed"]
    ended = batches["is_last_batch"] and current["ready"] == batch  # otherwise the next batch is the last
    if epochs["ready"] == epoch:  # the epoch's end was processed
        epoch, batch = (epoch - 1, batch) if batch and not ended else (epoch, 0)
    elif epochs["ready"] != epochs["started"]:
        batch = 0  # the counters of the epoch before have not been reset yet
    done = current["completed"] == current["processed"] and validation["is_last_batch"]
    return Position(epoch, batch, ended and batch > 0, done and validated["ready"] == validated["completed"])


def rewrite_position(checkpoint: dict[str, Any]) -> None:
    """Rewrite the counters so that Lightning continues from `position_of` the checkpoint.

    Left alone, Lightning takes some positions for the end of an epoch, or counts an epoch or a batch twice (Lightning
    2.6: `_FitLoop.update_restart_stage`). It handles two correctly: between epochs, and after a whole batch.
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
    if not validated:  # to Lightning, this looks like an interrupted validation, which it runs if it is due
        progress = loops["epoch_loop.val_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    for progress in loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
        for counts in progress.values():
            counts |= dict.fromkeys(counts, counts["completed"])
    # A loader counts the batches it has yielded, which may be more than were trained on.
    for state in loops["state_dict"].get("combined_loader", []):
        if "position" in state:
            state |= {"epoch": epoch, "position": batch}
