"""The length of a run that its schedule is made for, and what happens if a resumed run has another length."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import Trainer

from cifar_lightning.errors import unknown_name
from cifar_lightning.optim.joined import without_schedulers
from cifar_lightning.optim.schedule import Schedule
from cifar_lightning.optim.schedules import Cosine, OneCycle
from cifar_lightning.training.length import count_optimizer_steps
from cifar_lightning.training.lightning_internals import stop_at
from cifar_lightning.training.rate_record import RateRecord

OnResume = Literal["refuse", "finish", "new"]


class Cycle:
    """The optimizer steps that a run's schedule covers.

    Args:
        resume: What to do when a run is resumed with a different length than its schedule was made for: refuse,
            finish the old cycle and then stop, or start a new cycle from the current weights for the remaining steps.

    Raises:
        ValueError: If the choice is unknown.
    """

    def __init__(self, resume: OnResume = "refuse") -> None:
        if resume not in get_args(OnResume):
            raise unknown_name("way to resume a cycle", resume, get_args(OnResume))
        self.resume = resume
        self._total: int | None = None  # steps of the whole run
        self._first = 0  # nonzero only after an older cycle, of an earlier fit or of a resumed run
        self._is_new = False
        #: The learning rates so far, for the plot.
        self.rates = RateRecord()

    def start(self, trainer: Trainer) -> None:
        """Start a cycle with the fit. Steps of an earlier fit of the same trainer count, but its cycle is over."""
        self._first, self._is_new = trainer.global_step, False
        if not trainer.global_step:
            self.rates = RateRecord()

    def count_steps(self, trainer: Trainer, schedule: Schedule) -> int | None:
        """Number of steps from the start of the cycle to the end of the run; None if it can't be known.

        Raises:
            ValueError: If the schedule can't do without a length.
        """
        self._total = count_optimizer_steps(trainer)
        if not self._total and isinstance(schedule, OneCycle | Cosine):
            raise ValueError(
                f"{type(schedule).__name__} needs to know the length of the run: expected at least one optimizer "
                "step, from max_steps or from max_epochs and a data loader with a length; got max_epochs "
                f"{trainer.max_epochs}, max_steps {trainer.max_steps}, limit_train_batches "
                f"{trainer.limit_train_batches}"
            )
        if self._total is None or self._first >= self._total:  # no steps are left, so any length will do
            return self._total
        return self._total - self._first

    def begin(self, trainer: Trainer) -> None:
        """Begin a new cycle at its first rate; a restored optimizer still has the old cycle's last rate."""
        if self._is_new:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = lr
        self.rates.start(trainer)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write the cycle into a checkpoint."""
        checkpoint["total_steps"], checkpoint["first_step"] = self._total, self._first
        checkpoint["learning_rates"] = self.rates.save()

    def restore(self, trainer: Trainer, checkpoint: dict[str, Any], schedules: Sequence[Schedule]) -> None:
        """Check that a resumed run has the length that its schedules were made for.

        Schedules that begin a new cycle lose their state in the checkpoint; others, which have no length, go on.

        Args:
            trainer: The trainer.
            checkpoint: The checkpoint.
            schedules: The schedule of each network.

        Raises:
            ValueError: If the length differs and `resume` does not say what to do.
        """
        old, new = checkpoint.get("total_steps"), count_optimizer_steps(trainer)
        self._first = checkpoint.get("first_step", 0)
        self.rates.restore(checkpoint.get("learning_rates"))
        cycles = [index for index, schedule in enumerate(schedules) if isinstance(schedule, OneCycle | Cosine)]
        if not cycles or old is None or old == new:
            return
        match self.resume:
            case "finish":
                stop_at(trainer, old)
            case "new" if new is None or new > checkpoint["global_step"]:
                self._first, self._is_new = checkpoint["global_step"], True
                states, is_every = checkpoint["lr_schedulers"], len(cycles) == len(schedules)
                checkpoint["lr_schedulers"] = [] if is_every else without_schedulers(states, cycles)
            case _:
                name = type(schedules[cycles[0]]).__name__
                raise ValueError(
                    f"the run's length does not match its {name} schedule: expected {old} optimizer steps, as when the "
                    f"checkpoint was written, got {new}. Pass --cycle.resume finish to finish the old cycle, or "
                    "--cycle.resume new to start a new one from these weights"
                )
