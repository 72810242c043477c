"""Several optimizers, and their schedules, combined into one for a trainer that takes one of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cifar_lightning.optim.schedule import Schedule


class JoinedOptimizer(Optimizer):
    """Optimizers that step together. Its parameter groups are theirs.

    Args:
        optimizers: The optimizers; no two share parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = groups  # the same dictionaries, so each rate is stored once
        self.optimizers = list(optimizers)
        #: Whether each optimizer steps.
        self.active = [True] * len(optimizers)

    def rate(self, index: int) -> float:
        """The current learning rate of one optimizer."""
        return float(self.optimizers[index].param_groups[0]["lr"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each active optimizer; return the result of the closure, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, is_active in zip(self.optimizers, self.active, strict=True):
            if is_active:
                optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of every member."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]  # new ones


class JoinedScheduler:
    """Schedulers that step together, each for one optimizer of a `JoinedOptimizer`.

    Args:
        optimizer: The joined optimizers.
        schedulers: By the optimizer's index. Schedulers that follow a metric are only stored here: whoever measures the
            metric steps them.
    """

    def __init__(self, optimizer: JoinedOptimizer, schedulers: Mapping[int, LRScheduler]) -> None:
        self.optimizer, self.schedulers = optimizer, dict(schedulers)

    def step(self, *args: Any) -> None:
        """Step the schedulers of the active optimizers."""
        for index, scheduler in self.schedulers.items():
            if self.optimizer.active[index] and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group of the joined optimizers."""
        rates: list[float] = []
        for index, optimizer in enumerate(self.optimizer.optimizers):
            scheduler = self.schedulers.get(index)
            last = scheduler.get_last_lr() if scheduler else [group["lr"] for group in optimizer.param_groups]
            rates += map(float, last)
        return rates

    def state_dict(self) -> dict[str, Any]:
        """The state of every member."""
        return {"schedulers": {index: scheduler.state_dict() for index, scheduler in self.schedulers.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for index, state in state_dict["schedulers"].items():
            self.schedulers[index].load_state_dict(state)


def without_schedulers(states: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[dict[str, Any]]:
    """States of `JoinedScheduler`s, less the members for these optimizers, which loading them leaves unchanged."""
    members: list[Mapping[int, Any]] = [state["schedulers"] for state in states]
    return [{"schedulers": {i: own for i, own in each.items() if i not in indices}} for each in members]


def join(
    optimizers: Sequence[Optimizer], schedules: Sequence[Schedule], lengths: Sequence[int | None]
) -> tuple[JoinedOptimizer, dict[str, JoinedScheduler]]:
    """Join optimizers, and join their schedules by the interval at which they are stepped.

    Args:
        optimizers: The optimizers; no two share parameters.
        schedules: One per optimizer.
        lengths: Number of training steps per optimizer, as in `Schedule.build`.
    """
    joined = JoinedOptimizer(optimizers)
    built = enumerate(zip(optimizers, schedules, lengths, strict=True))
    groups: dict[str, dict[int, LRScheduler]] = {}
    for index, (optimizer, schedule, length) in built:
        groups.setdefault(schedule.interval, {})[index] = schedule.build(optimizer, length)
    return joined, {
        interval: JoinedScheduler(joined, group) for interval, group in sorted(groups.items(), reverse=True)
    }
