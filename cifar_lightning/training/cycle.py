"""The length that a schedule is made for, which a resumed training may or may not keep."""

from typing import Any, Literal, get_args

from lightning.pytorch import Trainer

from cifar_lightning.errors import unknown_name
from cifar_lightning.optim.schedule import Schedule
from cifar_lightning.optim.schedules import Cosine, OneCycle
from cifar_lightning.training.length import count_optimizer_steps
from cifar_lightning.training.lightning_internals import stop_at
from cifar_lightning.training.rate_record import RateRecord

OnResume = Literal["refuse", "finish", "new"]


class Cycle:
    """The optimizer steps of a training, from the first to the last that its schedule counts.

    Args:
        resume: What to do when a training is resumed with another length than its schedule was made for: refuse,
            finish the old cycle and stop, or begin a new one from the present weights for the steps that are left.

    Raises:
        ValueError: For an unknown choice.
    """

    def __init__(self, resume: OnResume = "refuse") -> None:
        if resume not in get_args(OnResume):
            raise unknown_name("way to resume a cycle", resume, get_args(OnResume))
        self.resume = resume
        self._total: int | None = None  # steps of the whole training
        self._first = 0  # not 0 only if an earlier fit of the trainer, or a resumed training, has an older cycle
        self._is_new = False
        #: The learning rate of the training so far, for its picture.
        self.rates = RateRecord()

    def start(self, trainer: Trainer) -> None:
        """Start a cycle with the fit: steps of an earlier one of the same trainer count, but its cycle is over."""
        self._first, self._is_new = trainer.global_step, False
        if not trainer.global_step:
            self.rates = RateRecord()

    def count_steps(self, trainer: Trainer, schedule: Schedule) -> int | None:
        """Number of steps from the cycle's first to the training's last; None if it can't be known.

        Raises:
            ValueError: If the schedule can't do without a length.
        """
        self._total = count_optimizer_steps(trainer)
        if not self._total and isinstance(schedule, OneCycle | Cosine):
            raise ValueError(
                f"{type(schedule).__name__} needs to know how long the training is: expected at least one optimizer "
                "step, by max_steps, or by max_epochs with a data loader that has a length; got max_epochs "
                f"{trainer.max_epochs}, max_steps {trainer.max_steps}, limit_train_batches "
                f"{trainer.limit_train_batches}"
            )
        if self._total is None or self._first >= self._total:  # none is left, so any length will do
            return self._total
        return self._total - self._first

    def begin(self, trainer: Trainer) -> None:
        """Begin a new cycle at its own first rate: a restored optimizer still has the last rate of the old one."""
        if self._is_new:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = lr
        self.rates.start(trainer)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write the cycle into a checkpoint."""
        checkpoint["total_steps"], checkpoint["first_step"] = self._total, self._first
        checkpoint["learning_rates"] = self.rates.save()

    def restore(self, trainer: Trainer, checkpoint: dict[str, Any], schedule: Schedule) -> None:
        """Make sure that a resumed training has the length that its schedule was made for.

        Raises:
            ValueError: If it has another, and `resume` does not say what to do.
        """
        old, new = checkpoint.get("total_steps"), count_optimizer_steps(trainer)
        self._first = checkpoint.get("first_step", 0)
        self.rates.restore(checkpoint.get("learning_rates"))
        if not isinstance(schedule, OneCycle | Cosine) or old is None or old == new:
            return
        match self.resume:
            case "finish":
                stop_at(trainer, old)
            case "new" if new is None or new > checkpoint["global_step"]:
                self._first, self._is_new = checkpoint["global_step"], True
                checkpoint["lr_schedulers"] = []
            case _:
                raise ValueError(
                    f"the training has another length than its {type(schedule).__name__} schedule: expected {old} "
                    f"optimizer steps, as when the checkpoint was written; got {new}. Either finish the old "
                    "cycle, --cycle.resume finish, or begin a new one from these weights, --cycle.resume new"
                )
