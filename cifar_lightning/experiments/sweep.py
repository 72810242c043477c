"""A sweep: a training for each combination of some values, all at once."""

import csv
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from cifar_lightning.analysis.plots import draw_learning_curves
from cifar_lightning.callbacks.run_folder import run_folder
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.experiments.sweep_check import refuse_what_can_not_act
from cifar_lightning.experiments.sweep_copy import Copy, make_copy, val_loss
from cifar_lightning.training.classifier import MLPClassifier
from cifar_lightning.training.lightning_internals import count_optimizer_steps, stop_before_training
from cifar_lightning.training.random_state import collect_generators, restore_generators


class Sweep(Callback):
    """In the place of one training, train a network for each combination of some values, all as one `Stack`.

    Each gets a folder with the usual logs, learning curves and checkpoints; `sweep.csv` lists all. Then the fit ends.
    A copy starts from the weights, and sees the batches, of its own single run; dropout masks are others. All train for
    `max_epochs`. What would not act is refused: other callbacks, and some options of the trainer.

    Args:
        vary: Values by name: "lr", "seed", or an argument of the optimizer or the schedule, as "optimizer.momentum".

    Raises:
        ValueError: If there is nothing to vary, or an unknown name.
    """

    def __init__(self, vary: dict[str, list[float]]) -> None:
        if not vary or not all(vary.values()):
            raise ValueError(f"nothing to sweep: expected values by name, as in {{lr: [0.01, 0.1]}}; received {vary}")
        self.vary = vary
        self.copies: list[Copy] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train them all, report, and stop."""
        if not isinstance(pl_module, MLPClassifier) or trainer.world_size > 1:
            raise ValueError(
                f"nothing to sweep here: expected an MLPClassifier on one device, received a "
                f"{type(pl_module).__name__} on {trainer.world_size}"
            )
        refuse_what_can_not_act(self, trainer, run_folder(trainer))
        if pl_module.network.l1 or pl_module.network.l2:
            raise ValueError(
                "a sweep adds no penalty to the loss: expected --model.l1 0 and --model.l2 0, "
                f"received {pl_module.network.l1} and {pl_module.network.l2}"
            )
        generators, seed, threads = collect_generators(), os.environ.get("PL_GLOBAL_SEED"), torch.get_num_threads()
        folder = run_folder(trainer)
        try:
            self.copies = [make_copy(trainer, pl_module, values, folder) for values in self._combinations()]
            self._train(trainer, pl_module)
        finally:
            torch.set_num_threads(threads)
            restore_generators(generators)
            os.environ.pop("PL_GLOBAL_SEED", None)
            if seed is not None:
                os.environ["PL_GLOBAL_SEED"] = seed
        self._report(trainer, folder)
        stop_before_training(trainer)

    def _combinations(self) -> list[dict[str, float]]:
        return [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]

    def _train(self, trainer: Trainer, module: MLPClassifier) -> None:
        execution = replace(module.choose_execution(len(self.copies)), steps=1)
        get_console().print(f"{len(self.copies)} networks as one. {execution}", highlight=False)
        torch.set_num_threads(execution.threads)
        for each in self.copies:
            each.prepare(count_optimizer_steps(trainer))
        networks, optimizers = zip(*((each.model.network, each.optimizer) for each in self.copies), strict=True)
        stack = Stack(networks, optimizers, execution.compiled)
        step = 0
        for epoch in range(trainer.max_epochs or 1):
            seen, losses, hits = 0, torch.zeros(len(self.copies)), torch.zeros(len(self.copies))
            for images, labels in self._batches(trainer, epoch):
                standardized = self.copies[0].model.standardize(images.flatten(0, -4)).view(images.shape)
                batch_losses, logits = stack.step(standardized, labels)
                step += 1
                every = trainer.log_every_n_steps  # type: ignore[attr-defined]
                if every and step % every == 0:
                    for each, loss in zip(self.copies, batch_losses.tolist(), strict=True):
                        each.log({"train_step_loss": loss, "lr": each.lr, "epoch": epoch}, step)
                for each in self.copies:
                    each.after_step()
                size = labels.shape[-1]
                seen += size
                losses += batch_losses.cpu() * size
                hits += (logits.argmax(-1) == labels).sum(-1).cpu()
            validated = _validate(trainer, [each.model for each in self.copies])
            for each, loss, accuracy, row in zip(self.copies, losses / seen, hits / seen, validated, strict=True):
                row = {"train_loss": loss.item(), "train_accuracy": accuracy.item(), **row}
                each.log(row | {"epoch": epoch}, step)
                each.end_epoch(row)
            best = min(self.copies, key=lambda each: val_loss(each.best))
            get_console().print(
                f"epoch {epoch + 1:3}  best so far: {best.folder.name}, val_accuracy {best.best['val_accuracy']:.4f}",
                highlight=False,
            )

    def _batches(self, trainer: Trainer, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, 32, 32), or (M, B, 3, 32, 32) where seeds and so orders differ, with their labels."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders = {}
        for each in self.copies:
            loaders[each.seed] = loader = data.train_dataloader()
            if data.hparams["order_seed"] is None:
                loader.sampler.seed = each.seed
            loader.sampler.set_epoch(epoch)
        limit = trainer.limit_train_batches
        length = len(next(iter(loaders.values())))
        count = min(length, limit) if isinstance(limit, int) else int(length * limit)
        device = trainer.strategy.root_device
        for batches in itertools.islice(zip(*loaders.values(), strict=True), count):
            if len(loaders) == 1 or data.hparams["order_seed"] is not None:
                images, labels = batches[0]
            else:
                of_seed = dict(zip(loaders, batches, strict=True))
                images, labels = (
                    torch.stack(part) for part in zip(*(of_seed[c.seed] for c in self.copies), strict=True)
                )
            yield images.to(device), labels.to(device)

    def _report(self, trainer: Trainer, folder: Path) -> None:
        data_set = trainer.datamodule.data_set  # type: ignore[attr-defined]
        table = Table(*self.vary, "best epoch", "val loss", "val accuracy", title=f"Sweep on {data_set}", box=SIMPLE)
        with (folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*self.vary, "epoch", "val_loss", "val_accuracy", "folder"])
            for each in self.copies:
                best = each.best
                values = [f"{value:.10g}" for value in each.values.values()]
                writer.writerow([*values, int(best["epoch"]), best["val_loss"], best["val_accuracy"], each.folder.name])
                table.add_row(*values, f"{best['epoch']:.0f}", f"{best['val_loss']:.4f}", f"{best['val_accuracy']:.2%}")
                draw_learning_curves(
                    each.rows, each.folder / "learning_curves.png", f"{each.folder.name} on {data_set}"
                )
                for logger in each.loggers:
                    logger.finalize("success")
        get_console().print(table)


@torch.no_grad()
def _validate(trainer: Trainer, models: list[MLPClassifier]) -> list[dict[str, float]]:
    """Each one's loss and accuracy on the validation split, whose images are standardized once."""
    device = trainer.strategy.root_device
    losses, hits, seen = [0.0] * len(models), [0] * len(models), 0
    for model in models:
        model.eval()
    for images, labels in trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
        inputs, targets = models[0].standardize(images.to(device)), labels.to(device)
        for index, model in enumerate(models):
            logits = model.network(inputs)
            losses[index] += F.cross_entropy(logits, targets, reduction="sum").item()
            hits[index] += int((logits.argmax(-1) == targets).sum())
        seen += len(labels)
    for model in models:
        model.train()
    return [{"val_loss": loss / seen, "val_accuracy": hit / seen} for loss, hit in zip(losses, hits, strict=True)]
