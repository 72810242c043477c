"""The learning-rate finder: a range test before training that sets the rate of optimizer and schedule."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch.optim import Optimizer

from cifar_lightning.analysis.plots import draw_sweep
from cifar_lightning.callbacks.progress_line import Clock, ProgressLine
from cifar_lightning.callbacks.run_folder import data_set_name, is_writer, run_folder, say_where
from cifar_lightning.callbacks.sweep_step import SweepStep
from cifar_lightning.files import replacing
from cifar_lightning.optim.lr_range_test import LRSweep, Mode, make_rates, run_sweep
from cifar_lightning.optim.lr_rules import Rule
from cifar_lightning.training.lightning_internals import (
    prepared_train_loader,
    set_initial_hparam,
    stop_before_training,
)
from cifar_lightning.training.messages import say
from cifar_lightning.training.random_state import collect_generators, restore_generators
from cifar_lightning.training.run_events import show_picture


class LRFinder(Callback):
    """Before training, sweep the learning rate, then train at the suggested rate.

    It works for any LightningModule with automatic optimization and one optimizer. The sweep runs on an in-memory copy
    of the module, with the trainer's precision, accumulation, clipping and devices, over as many passes through the
    training data as needed, without validating or logging. Parameter groups keep the ratios of their rates. Where the
    loss varies a lot between batches, as with small ones, each loss is averaged over up to 64 batches: the step's own
    and some fixed ones, which are not trained on. The copy's hooks at the start of training and in each step run; hooks
    at the end of an epoch and callbacks do not.

    Afterwards everything is restored: weights, statistics, random generators, the loaders' order, `global_step`. Then
    the rate is set, and optimizer and schedule are rebuilt, so a schedule's peak follows it; hparams, loggers and
    checkpoints show the new rate. A resumed run is not swept.

    Writes `lr_finder.csv` and `lr_finder.png` into the run's folder and prints each rule's suggestion.

    Args:
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of optimizer steps, at least 10.
        mode: Whether the rate grows by a constant factor or by a constant difference.
        rule: The rule whose suggestion is used.
        attribute: The hyperparameter or attribute of the module to set, with dots for a nested one, such as
            "schedule.init_args.max_lr".
        apply: Whether to train at the suggested rate instead of the given one.
        stop: Whether to stop after the sweep.

    Raises:
        ValueError: If the range is wrong, the module has several optimizers or lacks the hyperparameter, there is no
            data, all batches are skipped, or no rate can be suggested; also if it should stop after the sweep but the
            run is resumed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from cifar_lightning import LRFinder
        >>> trainer = Trainer(max_epochs=5, logger=False, callbacks=[LRFinder(max_lr=1.0, num_steps=100)])
    """

    def __init__(
        self,
        min_lr: float = 1e-5,
        max_lr: float = 10.0,
        num_steps: int = 300,
        mode: Mode = "exponential",
        rule: Rule = "valley",
        attribute: str = "lr",
        apply: bool = True,
        stop: bool = False,
    ) -> None:
        self.lrs = make_rates(min_lr, max_lr, num_steps, mode)
        self.rule, self.attribute, self.apply, self.stop = rule, attribute, apply, stop
        self.sweep: LRSweep | None = None
        #: The given and the found rate, for resumed runs.
        self.found: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep, report, and set the rate."""
        if trainer.ckpt_path is not None:
            if self.stop:
                raise ValueError(
                    f"LRFinder with stop=True needs a new run: expected no --ckpt_path, got {str(trainer.ckpt_path)!r}"
                )
            if trainer.is_global_zero:
                get_console().print("LRFinder: the run is resumed, so there is no sweep.")
            return
        holders, name = _find_holders(pl_module, self.attribute)
        given = holders[0][name]
        generators = collect_generators()
        try:
            with SweepStep(trainer, pl_module, prepared_train_loader(trainer), given, len(self.lrs)) as step:
                self.sweep = self._sweep(trainer, step)
        finally:
            restore_generators(generators)
        folder = run_folder(trainer)
        data_set = data_set_name(trainer)
        title = f"Learning-rate range test on {data_set}"
        suggestions = _suggestions(self.sweep)
        if is_writer(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(self.sweep, folder / "lr_finder.csv")
            draw_sweep(self.sweep, self.rule, folder / "lr_finder.png", title)
            show_picture(trainer, folder / "lr_finder.png")
        if trainer.is_global_zero and suggestions:
            say(title)
            get_console().print(_table(suggestions, self.rule))
        if is_writer(trainer):
            taken = suggestions.get(self.rule)
            then = (
                f"cifar-lightning fit, with the same config and --model.{self.attribute} {taken:.3g}" if taken else ""
            )
            say_where(folder, ["lr_finder.csv", "lr_finder.png"], then if self.stop else "")
        if self.apply or self.stop:
            suggestion = self.sweep.suggest(self.rule)  # raises if there is none
        if self.stop:
            stop_before_training(trainer)
        if self.apply and not self.stop:
            self.found = {"attribute": self.attribute, "given": given, "found": suggestion}
            self._give(pl_module, holders, name, suggestion)
            before = _rates(trainer.optimizers[0])
            trainer.strategy.setup_optimizers(trainer)
            _check_reached(before, _rates(trainer.optimizers[0]), self.attribute, given, suggestion)
            if trainer.is_global_zero:
                get_console().print(f"LRFinder: training with {self.attribute} = {suggestion:.3g} ({self.rule}).")

    def _sweep(self, trainer: Trainer, step: SweepStep) -> LRSweep:
        """Sweep, with a progress line on the first rank's terminal; it ends early if the loss diverges."""
        line, clock, count = ProgressLine(), Clock(), 0

        def make_step(lr: float) -> float:
            nonlocal count
            loss = step(lr)
            count += 1
            left = clock.seconds_left(count, len(self.lrs))
            if line.is_due:
                line.show("LRFinder", count, len(self.lrs), left, [f"loss {loss:.3f}", f"lr {lr:.2e}"])
            return loss

        if not trainer.is_global_zero:
            return run_sweep(step, self.lrs)
        say(f"LRFinder: up to {len(self.lrs):,} steps at learning rates from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}")
        with line:
            return run_sweep(make_step, self.lrs)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module of a resumed run the rate that was found, if it still has the one that was given."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state and state["attribute"] == self.attribute and trainer.state.fn == TrainerFn.FITTING:
            holders, name = _find_holders(pl_module, self.attribute)
            if holders[0][name] == state["given"]:
                self._give(pl_module, holders, name, state["found"])

    def _give(self, module: LightningModule, holders: list[Any], name: str, rate: float) -> None:
        for holder in holders:
            holder[name] = rate
        set_initial_hparam(module, self.attribute.split("."), rate)

    def state_dict(self) -> dict[str, Any]:
        """The given and the found rate."""
        return self.found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the resumed run had found."""
        self.found = state_dict


def _rates(optimizer: Optimizer) -> list[dict[str, float]]:
    """The learning rates of each parameter group, including those its schedule uses."""
    names = ("lr", "initial_lr", "max_lr")
    return [{name: float(group[name]) for name in names if name in group} for group in optimizer.param_groups]


def _check_reached(
    before: list[dict[str, float]], after: list[dict[str, float]], attribute: str, given: Any, found: float
) -> None:
    """Check that the rates of a rebuilt optimizer, or of its schedule, have followed the hyperparameter.

    Some groups may use a fraction of it, or not depend on it.
    """
    change = found / given if isinstance(given, float | int) and given else math.nan
    for old, new in zip(before, after, strict=True):
        for name, rate in new.items():
            expected = (found, old.get(name, 0.0) * change)
            if rate and any(math.isclose(rate, each, rel_tol=1e-6) for each in expected):
                return
    raise ValueError(
        f"the suggested learning rate does not reach the optimizer: expected rates that follow {attribute!r}, which "
        f"was {given} and is now {found:.3g}; got {after}, before that {before}. Set `attribute` to the hyperparameter "
        "that the optimizer uses"
    )


def _find_holders(pl_module: LightningModule, path: str) -> tuple[list[Any], str]:
    """The mappings that contain the value at `path`, and its name there.

    It may be a hyperparameter, an attribute of the module, or both: self.lr = lr is as common as self.hparams.lr.
    """
    *outer, name = path.split(".")
    holders = []
    for root in (pl_module.hparams, pl_module):
        holder = _inside(root, outer)
        if holder is not None and name in holder:
            holders.append(holder)
    if not holders:
        raise ValueError(
            "no such hyperparameter: expected an attribute of the module or one of its saved hyperparameters, "
            f"{', '.join(map(str, pl_module.hparams))}; got {path!r}"
        )
    return holders, name


def _inside(root: Any, path: list[str]) -> Any:
    """The mapping at `path` within nested mappings and objects, or None."""
    for key in path:
        root = root.get(key) if isinstance(root, Mapping) else getattr(root, key, None)
    return root if isinstance(root, Mapping) else getattr(root, "__dict__", None)


def write_csv(sweep: LRSweep, path: Path) -> None:
    """Write learning rate, loss and smoothed loss, one row per step."""
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lr", "loss", "smoothed_loss"])
        writer.writerows(zip(sweep.lrs, sweep.losses, sweep.smoothed, strict=True))


def _suggestions(sweep: LRSweep) -> dict[str, float]:
    try:
        return sweep.suggestions()
    except ValueError:  # the plot of a failed sweep shows why it failed
        return {}


def _table(suggestions: dict[str, float], rule: Rule) -> Table:
    table = Table("rule", "learning rate", box=SIMPLE)
    for name, lr in suggestions.items():
        table.add_row(f"{name} (taken)" if name == rule else name, f"{lr:.3g}")
    return table
