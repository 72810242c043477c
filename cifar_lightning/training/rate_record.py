"""Records the learning rate step by step, for the learning curves."""

from typing import Any

from lightning.pytorch import Trainer

from cifar_lightning.training.lightning_internals import epochs_so_far

#: A plot can't show more points.
MOST_POINTS = 2000


class RateRecord:
    """The rates set by the scheduler: every step at first; every other point is dropped whenever the list gets long."""

    def __init__(self) -> None:
        #: Epochs since the start of training, with a fraction, and the rate from then on.
        self.points: list[tuple[float, float]] = []
        self._every, self._seen = 1, 0

    def start(self, trainer: Trainer) -> None:
        """Record the first rate of a run, or of the rest of a resumed one."""
        self._add(self.points[-1][0] if self.points else float(trainer.current_epoch), trainer)

    def note(self, trainer: Trainer) -> None:
        """Record the rate that a scheduler has just set for the next step."""
        self._seen += 1
        if self._seen % self._every == 0:
            self._add(epochs_so_far(trainer), trainer)

    def _add(self, epochs: float, trainer: Trainer) -> None:
        point = epochs, float(trainer.optimizers[0].param_groups[0]["lr"])
        if self.points[-1:] != [point]:
            self.points.append(point)
        if len(self.points) > MOST_POINTS:
            self.points, self._every = self.points[::2], 2 * self._every

    def save(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"points": list(self.points), "every": self._every, "seen": self._seen}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Continue from a saved state; None for none."""
        if saved is not None:
            self.points, self._every, self._seen = list(saved["points"]), saved["every"], saved["seen"]
