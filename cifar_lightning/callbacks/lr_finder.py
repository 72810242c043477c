"""The learning-rate finder: a sweep before the training, whose suggestion reaches optimizer and schedule."""

import copy
import csv
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer

from cifar_lightning.optim.lr_range_test import LRSweep, Mode, endless, make_rates, run_sweep, set_rate
from cifar_lightning.optim.lr_rules import Rule
from cifar_lightning.training.random_state import collect_generators, restore_generators


class LRFinder(Callback):
    """Before a training, sweep the learning rate, and train at the rate that the sweep suggests.

    For any LightningModule with automatic optimization and one optimizer. The sweep runs on a copy of the module, in
    memory, with the trainer's precision, accumulation, clipping and devices, over as many passes of the training data
    as it takes; nothing is validated or logged. Afterwards everything is as before: weights, statistics, random
    generators, the loaders' order, `global_step`. Then the rate is set and optimizer and schedule are built anew, so
    that a schedule's peak follows it; it stands in hparams, loggers and checkpoints. A resumed training is not swept.

    Writes `lr_finder.csv` and `lr_finder.png` into the run's folder, and prints what every rule suggests.

    Args:
        min_lr: The first rate.
        max_lr: The last rate.
        num_steps: Number of optimizer steps, at least 10.
        mode: Whether the rates grow by a factor or by a difference.
        rule: The rule whose suggestion is taken.
        attribute: The hyperparameter that is set, "lr" by default; with dots for one inside of another, such as
            "schedule.init_args.max_lr".
        apply: Whether to train at the suggested rate, or at the given one.
        stop: Whether to stop after the sweep.

    Raises:
        ValueError: For a wrong range, a module with several optimizers or without the hyperparameter, no data, or a
            sweep that suggests nothing.
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
        #: What was given and what was found, for a resume to know.
        self.found: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep, report, and set the rate."""
        if trainer.ckpt_path is not None:
            if trainer.is_global_zero:
                get_console().print("LRFinder: the training is resumed, so there is no sweep.")
            return
        holder, name = _find_attribute(pl_module, self.attribute)
        generators = collect_generators()
        stepper = _Stepper(trainer, pl_module)
        try:
            self.sweep = run_sweep(stepper, self.lrs)
        finally:
            stepper.restore_loader()
            restore_generators(generators)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks
        data_set = getattr(trainer.datamodule, "data_set", "unnamed data")  # type: ignore[attr-defined]
        title = f"Learning-rate range test on {data_set}"
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(self.sweep, folder / "lr_finder.csv")
            draw_sweep(self.sweep, folder / "lr_finder.png", self.rule, title)
        suggestions = _suggestions(self.sweep)
        if trainer.is_global_zero and suggestions:
            get_console().print(_table(suggestions, self.rule, title))
        if self.apply or self.stop:
            suggestion = self.sweep.suggest(self.rule)  # raises if there is none
        if self.stop:
            stop_before_training(trainer)
        if self.apply and not self.stop:
            self.found = {"attribute": self.attribute, "given": holder[name], "found": suggestion}
            holder[name] = suggestion
            if hasattr(pl_module, self.attribute):  # self.lr = lr is as common as self.hparams.lr
                setattr(pl_module, self.attribute, suggestion)
            # The loggers are about to write the *initial* hyperparameters, which this makes of the present ones.
            pl_module.save_hyperparameters(dict(pl_module.hparams))
            trainer.strategy.setup_optimizers(trainer)
            _check_reached(trainer.optimizers[0], self.attribute, suggestion)
            if trainer.is_global_zero:
                get_console().print(f"LRFinder: training with {self.attribute} = {suggestion:.3g} ({self.rule}).")

    def state_dict(self) -> dict[str, Any]:
        """What was given and what was found."""
        return self.found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the resumed training had found."""
        self.found = state_dict


class _Stepper:
    """An optimizer step at a given rate, on a copy of the module, as the trainer would make it."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer = trainer
        self.module = copy.deepcopy(pl_module)
        self.module.trainer = trainer
        self.module.train()
        for name in ("log", "log_dict"):  # nothing goes into the run's metrics
            setattr(self.module, name, _log_nothing)
        self.optimizer = self._one_optimizer()
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self.batches = self._batches()
        self.scaler = copy.deepcopy(getattr(trainer.precision_plugin, "scaler", None))
        parameters = inspect.signature(self.module.training_step).parameters
        self.takes_index = len(parameters) > 1
        self.index = 0

    def _one_optimizer(self) -> Optimizer:
        if not self.module.automatic_optimization:
            raise ValueError("LRFinder needs automatic optimization: expected one optimizer, received a manual loop")
        configured = self.module.configure_optimizers()
        if isinstance(configured, dict):
            configured = configured["optimizer"]
        if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
            configured = configured[0]  # ([optimizers], [schedulers])
        optimizers = list(configured) if isinstance(configured, list | tuple) else [configured]
        if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
            raise ValueError(f"LRFinder needs one optimizer: expected exactly one, received {len(optimizers)}")
        return optimizers[0]

    def _batches(self) -> Iterator[Any]:
        loader: Any = self.trainer.fit_loop._data_source.dataloader()
        loader = self.trainer._data_connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING)
        for part in (loader, getattr(loader, "sampler", None)):
            if (generator := getattr(part, "generator", None)) is not None:
                self.generators.append((generator, generator.get_state()))
        return endless(loader)

    def restore_loader(self) -> None:
        """Leave a loader that the run will use itself as it was."""
        for generator, state in self.generators:
            generator.set_state(state)

    def __call__(self, lr: float) -> float:
        """Step at rate `lr`; return the loss, averaged over accumulated batches and ranks."""
        trainer, module = self.trainer, self.module
        set_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=module.device)
        for _ in range(trainer.accumulate_grad_batches):
            batch = trainer.precision_plugin.convert_input(next(self.batches))
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.train_step_context():
                output: Any = module.training_step(*((batch, self.index) if self.takes_index else (batch,)))
            self.index += 1
            loss: Tensor = (output["loss"] if isinstance(output, dict) else output) / trainer.accumulate_grad_batches
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            total += loss.detach()
        if trainer.world_size > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
            total = trainer.strategy.reduce(total, reduce_op="mean")
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        module.configure_gradient_clipping(
            self.optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # Through the module, which may do more than step: impose a constraint, say.
            module.optimizer_step(trainer.current_epoch, self.index, self.optimizer, lambda: None)
        return total.item()


def stop_before_training(trainer: Trainer) -> None:
    """Let a fit end before its first step, whatever its least number of epochs or steps."""
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None
    trainer.should_stop = True


def _check_reached(optimizer: Optimizer, attribute: str, lr: float) -> None:
    """Check that an optimizer that was built anew goes by the rate, or its schedule does."""
    group = optimizer.param_groups[0]
    rates = {name: float(group[name]) for name in ("lr", "initial_lr", "max_lr") if name in group}
    if not any(math.isclose(rate, lr, rel_tol=1e-6) for rate in rates.values()):
        raise ValueError(
            f"the suggested rate does not reach the optimizer: expected one that goes by the hyperparameter "
            f"{attribute!r}, which is {lr:.3g} now; received {rates}. Name by `attribute` the one that it goes by"
        )


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _find_attribute(pl_module: LightningModule, path: str) -> tuple[Any, str]:
    """The mapping in which the hyperparameter `path` stands, and its name there."""
    holder: Any = pl_module.hparams
    *outer, name = path.split(".")
    for key in outer:
        holder = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(holder, Mapping) or name not in holder:
        raise ValueError(
            "no such hyperparameter: expected one that the module has saved by save_hyperparameters(), of "
            f"{', '.join(map(str, pl_module.hparams))}; received {path!r}"
        )
    return holder, name


def write_csv(sweep: LRSweep, path: Path) -> None:
    """Write rate, loss and smoothed loss, a row a step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lr", "loss", "smoothed_loss"])
        writer.writerows(zip(sweep.lrs, sweep.losses, sweep.smoothed, strict=True))


def _suggestions(sweep: LRSweep) -> dict[str, float]:
    try:
        return sweep.suggestions()
    except ValueError:  # the picture of a failed sweep shows why it failed
        return {}


def draw_sweep(sweep: LRSweep, path: Path, rule: Rule, title: str) -> None:
    """Draw the losses against the rate, with every suggestion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(sweep.lrs, sweep.losses, color="lightgrey", label="loss of each step")
    axes.plot(sweep.lrs, sweep.smoothed, color="black", label="smoothed")
    for index, (name, lr) in enumerate(_suggestions(sweep).items()):
        nearest = min(range(len(sweep.lrs)), key=lambda i: abs(sweep.lrs[i] - lr))
        label = f"{name}: {lr:.2e}" + (" (taken)" if name == rule else "")
        size = 13 if name == rule else 8
        axes.plot(lr, sweep.smoothed[nearest], "o", markersize=size, color=f"C{index}", label=label)
        axes.axvline(lr, color=f"C{index}", linewidth=0.8, linestyle=":")
    finite = [loss for loss in sweep.smoothed if loss == loss and loss < float("inf")]
    if finite:
        low, high = min(finite), min(max(finite), 2 * finite[0])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _table(suggestions: dict[str, float], rule: Rule, title: str) -> Table:
    table = Table("rule", "learning rate", title=title, box=SIMPLE)
    for name, lr in suggestions.items():
        table.add_row(f"{name} (taken)" if name == rule else name, f"{lr:.3g}")
    return table
