"""The options of a search, and the distributions, sampler and pruner that follow from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from cifar_lightning.errors import refuse_more
from cifar_lightning.experiments.axis import Axis, Range
from cifar_lightning.experiments.grid import MOST_POINTS, Grid

#: Epochs in which the median rule prunes nothing: they rank learning rates by speed, not by where they lead.
WARMUP_EPOCHS = 2


@dataclass
class Options:
    """Options of a search; all others are passed to `cifar-lightning fit`.

    Args:
        vary: The search space: YAML, a YAML file, or the name of a shipped one.
        trials: Number of trials in all, including earlier ones and those of other processes; failed ones don't count.
        metric: Metric to minimize (val_loss) or maximize (val_accuracy), at the epoch with the lowest validation loss,
            whose weights are the trial's best.ckpt.
        sampler: How trials are sampled: tree-structured Parzen estimators, a Gaussian process, or at random.
        startup_trials: Number of random trials before the sampler learns from them.
        pruner: What stops trials early: the median of the other trials at the same epoch, Hyperband, or nothing.
            "auto" is the median, but nothing with a Gaussian process, which would sample pruned trials again.
        seed: Seed of the sampler; training runs use --seed_everything.
        out: Folder of the search, by default runs/search/NAME for --vary NAME.yaml. Processes and machines that share
            it share the trials.
        storage: Optuna's storage: a database URL or a journal file (needed on network file systems). By default
            study.db in the folder.
        study: Name of the search in the storage.

    Raises:
        ValueError: If a pruner is combined with a Gaussian process, or there are too many trials.
    """

    vary: str
    trials: PositiveInt = 10
    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    startup_trials: NonNegativeInt = 5
    pruner: Literal["auto", "median", "hyperband", "none"] = "auto"
    seed: NonNegativeInt = 42
    out: str | None = None
    storage: str | None = None
    study: str = "search"

    def __post_init__(self) -> None:
        refuse_more(MOST_POINTS, self.trials, "trials of a search")
        if self.sampler == "gp" and self.pruner not in ("auto", "none"):
            raise ValueError(
                "--sampler gp needs --pruner none, since a Gaussian process learns only from complete trials and would "
                f"sample pruned ones again; got {self.pruner}"
            )


def distributions(grid: Grid) -> dict[str, BaseDistribution]:
    """The distribution of each axis; for settings, of their names."""
    return {name: _distribution(axis) for name, axis in grid.axes.items()}


def _distribution(axis: Axis) -> BaseDistribution:
    match axis:
        case Range(type="int"):
            return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
        case Range():
            return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
        case _:  # (Optuna stores no lists and no objects.)
            return CategoricalDistribution(
                [value if isinstance(value, str | int | float) else json.dumps(value) for value in axis]
            )


class SeededByNumber(BaseSampler):
    """A new sampler for each trial, seeded by the trial's number.

    Samples then depend only on the seed, the number and earlier trials: a continued study does not repeat its first
    samples, and processes that share it do not draw the same ones.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take a new sampler."""
        self._sampler = self._make((self._seed * 1_000_003 + trial.number) % 2**32)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """See `BaseSampler`."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def make_sampler(options: Options) -> BaseSampler:
    """The sampler that the options name."""

    def make(seed: int) -> BaseSampler:
        match options.sampler:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=options.startup_trials)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=options.startup_trials)
            case "random":
                return RandomSampler(seed=seed)

    return SeededByNumber(make, options.seed)


def make_pruner(options: Options) -> BasePruner:
    """The pruner that the options name."""
    match options.pruner, options.sampler:
        case ("none", _) | ("auto", "gp"):
            return NopPruner()
        case "hyperband", _:
            return HyperbandPruner()
        case _:
            return MedianPruner(n_warmup_steps=WARMUP_EPOCHS)
