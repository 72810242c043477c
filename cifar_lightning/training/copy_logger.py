"""Logs of one network among several that are trained together."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from cifar_lightning.training.copies import STEP_METRICS, Copy
from cifar_lightning.training.run_events import RunEvents, log_best


class CopyLogger(Logger):
    """Passes one copy's metrics, with its name removed, to its own loggers.

    Args:
        of: The copy. Its metrics are logged as `val_loss/NAME`.
        loggers: The loggers that write them.
    """

    def __init__(self, of: Copy, loggers: Sequence[Logger]) -> None:
        super().__init__()
        self._copy, self._loggers = of, list(loggers)

    @property
    def name(self) -> str:
        """The copy's name."""
        return self._copy.name

    @property
    def version(self) -> str:
        """Empty: there is only one."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the copy's metrics, with the epoch."""
        end = f"/{self.name}"
        own = {name.removesuffix(end): value for name, value in metrics.items() if name.endswith(end)}
        if self._copy.has_stopped:  # Lightning repeats the last value of each metric until the epoch's end
            own = {name: value for name, value in own.items() if name not in STEP_METRICS}
        if own and "epoch" in metrics:
            own["epoch"] = metrics["epoch"]
        for logger in self._loggers if own else []:
            logger.log_metrics(own, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log the copy's hyperparameters; those passed in belong to the whole sweep."""
        for logger in self._loggers:
            logger.log_hyperparams({**self._copy.classifier.hparams, "seed": self._copy.seed})

    def arrange_charts(self) -> None:
        """Tell TensorBoard which curves share a chart."""
        for logger in self._loggers:
            if isinstance(logger, RunEvents):
                logger.arrange_charts()

    def log_best(self, step: int) -> None:
        """Add the copy's best epoch to TensorBoard's hyperparameter table, at the given optimizer step."""
        log_best(self._loggers, self._copy.best, step)

    def save(self) -> None:
        """Write out what has been logged."""
        for logger in self._loggers:
            logger.save()

    def finalize(self, status: str) -> None:
        """End the logs."""
        for logger in self._loggers:
            logger.finalize(status)
