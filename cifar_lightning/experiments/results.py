"""Results of the runs of a study, a search or a sweep, and tables of them."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.table import Table

from cifar_lightning.files import write_whole

Row = dict[str, float]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        name: What is compared: "selu", or "selu, lr=0.1"; runs that differ only in the seed share it.
        seed: Seed of weights, batch order and dropout; None if there was none.
        data_set: Name of the data set.
        parameters: Number of trainable parameters.
        folder: The run's folder, relative to that of all runs.
        rows: The metrics of each epoch; at least one has a validation. Of several in an epoch, it is the best.
        values: The values that a grid varied, by option.
        test_loss: Test loss of the weights with the lowest validation loss; NaN if it was not measured.
        test_accuracy: Test accuracy of these weights; NaN if it was not measured.
        pruned: Whether a search stopped the run early.
    """

    name: str
    seed: int | None
    data_set: str
    parameters: int
    folder: str
    rows: list[Row]
    values: Mapping[str, Any] = field(default_factory=dict)
    test_loss: float = math.nan
    test_accuracy: float = math.nan
    pruned: bool = False

    @property
    def best(self) -> Row:
        """The epoch with the lowest validation loss; the first one if no loss was finite."""
        return min(self.validated, key=lambda row: row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf)

    @property
    def last(self) -> Row:
        """The last epoch with a validation, by which 1cycle is judged."""
        return self.validated[-1]

    @property
    def validated(self) -> list[Row]:
        """The epochs with a validation."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def seconds(self) -> float:
        """Duration of all epochs in seconds, including validation."""
        return sum(row["seconds"] for row in self.rows)

    def epochs_to(self, loss: float) -> float:
        """The first epoch with at most this validation loss; infinity if there is none."""
        return next((row["epoch"] for row in self.validated if row["val_loss"] <= loss), math.inf)

    def __str__(self) -> str:
        test = f", test accuracy {self.test_accuracy:.2%}" if math.isfinite(self.test_accuracy) else ""
        loss, accuracy = self.best["val_loss"], _accuracy(self.best)
        return f"validation loss {loss:.4f}, accuracy {accuracy:.2%}{test}, {self.seconds:.0f} s"

    def line(self) -> dict[str, Any]:
        """The run's line in results.csv."""
        stored = {name: value for name, value in asdict(self).items() if name not in ("rows", "values", "pruned")}
        best = {f"best_{name}": value for name, value in self.best.items() if name != "seconds"}
        return stored | dict(self.values) | best | {"epochs": len(self.rows), "seconds": self.seconds}

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_whole(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read a saved result.

        Raises:
            ValueError: If the file is broken.
        """
        try:
            result = cls(**json.loads(path.read_text()))
            result.line()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"broken result {path}: expected the file of a finished run, got {error}") from None
        return result


def _accuracy(row: Row) -> float:
    """The validation accuracy; NaN if the module logs none."""
    return row.get("val_accuracy", math.nan)


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over the seeds with a finite value, with their number and that of all seeds."""

    mean: float
    std: float
    count: int
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        """Make the statistic of at least one value; mean and deviation are NaN if there are too few finite ones."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(
            mean=mean(finite) if finite else math.nan,
            std=stdev(finite) if len(finite) > 1 else math.nan,
            count=len(finite),
            seeds=len(values),
        )

    def format(self, spec: str) -> str:
        """Format as "mean ± deviation (count of seeds)", leaving out the obvious."""
        if not self.count:
            return "-"
        deviation = f" ± {format(self.std, spec)}" if self.count > 1 else ""
        return format(self.mean, spec) + deviation + (f" ({self.count} of {self.seeds})" * (self.count < self.seeds))


@dataclass(frozen=True)
class Summary:
    """Results with one name, summarized over their seeds.

    Args:
        name: The name.
        seeds: The seeds.
        parameters: Number of trainable parameters.
        statistics: By the names in `COLUMNS`; at the epoch with the lowest validation loss, except `last_accuracy`.
    """

    name: str
    seeds: list[int | None]
    parameters: int
    statistics: dict[str, Statistic]

    @classmethod
    def of(cls, results: Sequence[Result], first_loss: float) -> "Summary":
        """Summarize at least one result of one name; `first_loss` is the mean best loss of the reference."""
        values = {
            "val_loss": [result.best["val_loss"] for result in results],
            "val_accuracy": [_accuracy(result.best) for result in results],
            "test_accuracy": [result.test_accuracy for result in results],
            "last_accuracy": [_accuracy(result.last) for result in results],
            "best_epoch": [result.best["epoch"] for result in results],
            "epochs_to_first": [result.epochs_to(first_loss) for result in results],
            # (The first epoch may include compilation.)
            "epoch_seconds": [median(row["seconds"] for row in result.rows) for result in results],
            "seconds": [result.seconds for result in results],
        }
        statistics = {name: Statistic.of(values[name]) for name in COLUMNS}
        return cls(results[0].name, [result.seed for result in results], results[0].parameters, statistics)

    def cell(self, column: str) -> str:
        """The text in a column of `COLUMNS`."""
        return self.statistics[column].format(COLUMNS[column].format)


class Column(NamedTuple):
    """A column of a table of results: its title, number format and meaning."""

    title: str
    format: str
    meaning: str


#: The columns of results.md and of a study's page.
COLUMNS = {
    "val_loss": Column("validation loss", ".3f", "The lowest validation loss of any epoch."),
    "val_accuracy": Column("validation accuracy", ".2%", "Accuracy on the validation set in the best epoch."),
    "test_accuracy": Column("test accuracy", ".2%", "Accuracy on the test set of the weights of the best epoch."),
    "last_accuracy": Column(
        "last epoch's validation accuracy",
        ".2%",
        "Accuracy on the validation set in the last epoch: what a 1cycle schedule is judged by. Of several validations "
        "in an epoch, the one with the lowest loss counts.",
    ),
    "best_epoch": Column("best epoch", ".0f", "The epoch of the lowest validation loss, counted from 1."),
    "epochs_to_first": Column(
        "epochs to the first's loss",
        ".0f",
        "How fast a config reaches the best loss of the first config: the first epoch whose validation loss is at "
        "most the mean of the first config's lowest losses. Runs that never reach it have a dash and do not count.",
    ),
    "epoch_seconds": Column(
        "seconds per epoch", ".1f", "The median over the epochs, since the first one may include compiling the step."
    ),
    "seconds": Column("total seconds", ".0f", "All epochs of a run together, including validation."),
}
#: The columns that fit on a narrow screen.
NARROW = ("val_loss", "val_accuracy", "test_accuracy", "epoch_seconds")


def summarize(results: Sequence[Result], first: str) -> list[Summary]:
    """One summary per name, in the order of their first results; `first` is the reference name."""
    loss = best_loss_of(first, results)
    return [Summary.of(group, loss) for group in by_name(results).values()]


def by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results by name, in the order of their first results."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.name, []).append(result)
    return groups


def best_loss_of(name: str, results: Sequence[Result]) -> float:
    """The mean best validation loss over a name's seeds; NaN if it has no results."""
    losses = [result.best["val_loss"] for result in results if result.name == name]
    return Statistic.of(losses).mean if losses else math.nan


def write_csv(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one line per run, from `Result.line` and what a command adds to it."""
    texts = [{k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in line.items()} for line in lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in texts for name in line)), restval="")
    writer.writeheader()
    writer.writerows(texts)
    write_whole(path, text.getvalue().encode())


def used_columns(summaries: Sequence[Summary], columns: Iterable[str]) -> list[str]:
    """The columns, without test accuracy if nothing was tested."""
    return [name for name in columns if name != "test_accuracy" or any(s.statistics[name].count for s in summaries)]


def write_markdown(results: Sequence[Result], first: str, path: Path, command: str) -> None:
    """Write a table with one row per name, and the command that made it; `first` is the reference name."""
    summaries = summarize(results, first)
    columns = used_columns(summaries, COLUMNS)
    data_sets = ", ".join(dict.fromkeys(result.data_set for result in results))
    lines = [
        f"Results on {data_sets or 'nothing yet'}: mean ± standard deviation over the seeds, for the weights with the "
        "lowest validation loss (except the last epoch's accuracy). The test set was not used for any choice.",
        "",
        "| name | seeds | " + " | ".join(COLUMNS[name].title for name in columns) + " | parameters |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for summary in summaries:
        seeds = ", ".join(map(str, summary.seeds))
        cells = [summary.name, seeds, *map(summary.cell, columns), f"{summary.parameters:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    write_whole(path, "\n".join([*lines, "", f"`{command}`", ""]).encode())


def make_table(results: Sequence[Result], first: str) -> Table:
    """The columns of results.md that fit on a narrow screen."""
    summaries = summarize(results, first)
    columns = used_columns(summaries, NARROW)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("name", overflow="fold")
    for name in columns:
        table.add_column(COLUMNS[name].title.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for summary in summaries:
        # A name of several parts, such as "n=2,lr=0.1", is broken between them.
        table.add_row(re.sub(r",(?! )", ", ", summary.name), *map(summary.cell, columns))
    return table
