"""What the runs of a study came to: one row a run, one a config, and their curves."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, median, stdev

from cifar_lightning.analysis.plots import DPI
from cifar_lightning.files import write_whole

Row = dict[str, float]


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        config: Name of the config.
        seed: Seed of weights, order and masks.
        data_set: Name of the data set.
        parameters: Number of trained parameters.
        folder: The run's folder, relative to the study's.
        rows: What was measured of each epoch; at least one with a validation.
        test_loss: Test loss of the weights of the lowest validation loss; NaN if there are none.
        test_accuracy: Their test accuracy.
    """

    config: str
    seed: int
    data_set: str
    parameters: int
    folder: str
    rows: list[Row]
    test_loss: float
    test_accuracy: float

    @property
    def best(self) -> Row:
        """The epoch of the lowest validation loss; the first one if it never was finite."""
        return min(self.validated, key=lambda row: row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf)

    @property
    def last(self) -> Row:
        """The last epoch with a validation, whose weights are those that 1cycle is for."""
        return self.validated[-1]

    @property
    def validated(self) -> list[Row]:
        """The epochs with a validation."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def seconds(self) -> float:
        """Seconds of all epochs, validation included."""
        return sum(row["seconds"] for row in self.rows)

    def epochs_to(self, loss: float) -> float:
        """The first epoch with at most this validation loss; infinity if there is none."""
        return next((row["epoch"] for row in self.validated if row["val_loss"] <= loss), math.inf)

    def save(self, path: Path) -> None:
        """Write all of it as JSON, or nothing at all."""
        write_whole(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over the seeds where a value is finite, and how many these are, of how many."""

    mean: float
    std: float
    count: int
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        """Of at least one value; mean and deviation are NaN where there are too few."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(
            mean=mean(finite) if finite else math.nan,
            std=stdev(finite) if len(finite) > 1 else math.nan,
            count=len(finite),
            seeds=len(values),
        )

    def format(self, spec: str) -> str:
        """As "mean ± deviation (count of seeds)", without what goes without saying."""
        if not self.count:
            return "-"
        deviation = f" ± {format(self.std, spec)}" if self.count > 1 else ""
        return format(self.mean, spec) + deviation + (f" ({self.count} of {self.seeds})" * (self.count < self.seeds))


@dataclass(frozen=True)
class Summary:
    """A config's results over its seeds, at the epoch of the lowest validation loss but for `last_accuracy`."""

    config: str
    seeds: list[int]
    val_loss: Statistic
    val_accuracy: Statistic
    test_accuracy: Statistic
    last_accuracy: Statistic
    best_epoch: Statistic
    epochs_to_first: Statistic
    epoch_seconds: Statistic
    seconds: Statistic
    parameters: int

    @classmethod
    def of(cls, results: Sequence[Result], first_loss: float) -> "Summary":
        """Of one config's results.

        Args:
            results: At least one.
            first_loss: The best validation loss of the study's first config, mean over seeds.
        """
        return cls(
            config=results[0].config,
            seeds=[result.seed for result in results],
            val_loss=Statistic.of([result.best["val_loss"] for result in results]),
            val_accuracy=Statistic.of([result.best["val_accuracy"] for result in results]),
            test_accuracy=Statistic.of([result.test_accuracy for result in results]),
            last_accuracy=Statistic.of([result.last["val_accuracy"] for result in results]),
            best_epoch=Statistic.of([result.best["epoch"] for result in results]),
            epochs_to_first=Statistic.of([result.epochs_to(first_loss) for result in results]),
            # (The first epoch compiles.)
            epoch_seconds=Statistic.of([median(row["seconds"] for row in result.rows) for result in results]),
            seconds=Statistic.of([result.seconds for result in results]),
            parameters=results[0].parameters,
        )


#: Title and format of each column of results.md and of the page.
COLUMNS = {
    "val_loss": ("validation loss", ".3f"),
    "val_accuracy": ("validation accuracy", ".2%"),
    "test_accuracy": ("test accuracy", ".2%"),
    "last_accuracy": ("last epoch's validation accuracy", ".2%"),
    "best_epoch": ("best epoch", ".0f"),
    "epochs_to_first": ("epochs to the first's loss", ".0f"),
    "epoch_seconds": ("seconds an epoch", ".1f"),
    "seconds": ("seconds in all", ".0f"),
}


def summarize(results: Sequence[Result], first: str) -> list[Summary]:
    """One summary a config, in the order of their first results, where `first` is the study's first config."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.config, []).append(result)
    first_losses = [result.best["val_loss"] for result in groups.get(first, [])]
    first_loss = Statistic.of(first_losses).mean if first_losses else math.nan
    return [Summary.of(group, first_loss) for group in groups.values()]


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write one row a run."""
    lines = []
    for result in results:
        row = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "rows"}
        best = {f"best_{name}": value for name, value in result.best.items() if name != "seconds"}
        lines.append(row | best | {"epochs": len(result.rows), "seconds": result.seconds})
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode())


def write_markdown(results: Sequence[Result], first: str, path: Path, command: str) -> None:
    """Write a table of one row a config, with the command that made it; `first` is the study's first config."""
    summaries = summarize(results, first)
    data_sets = ", ".join(dict.fromkeys(result.data_set for result in results))
    lines = [
        f"On {data_sets or 'nothing yet'}. Mean and standard deviation over the seeds, of the weights with the lowest "
        "validation loss but for the last epoch's; the test set chose nothing.",
        "",
        "| config | seeds | " + " | ".join(title for title, _ in COLUMNS.values()) + " | parameters |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for summary in summaries:
        cells = [getattr(summary, name).format(spec) for name, (_, spec) in COLUMNS.items()]
        seeds = ", ".join(map(str, summary.seeds))
        lines.append(f"| {summary.config} | {seeds} | " + " | ".join(cells) + f" | {summary.parameters:,} |")
    write_whole(path, "\n".join([*lines, "", f"`{command}`", ""]).encode())


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Draw validation loss and accuracy against the epoch: a line a run, a colour a config."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle("validation on " + ", ".join(dict.fromkeys(result.data_set for result in results)))
    configs = list(dict.fromkeys(result.config for result in results))
    colours = colormaps["tab10" if len(configs) <= 10 else "tab20"]
    for axes, quantity in zip(figure.subplots(1, 2), ("val_loss", "val_accuracy"), strict=True):
        for index, config in enumerate(configs):
            for number, result in enumerate(result for result in results if result.config == config):
                points = [(row["epoch"], row[quantity]) for row in result.validated]
                label = config if number == 0 else None
                axes.plot(
                    *zip(*points, strict=True), color=colours(index % colours.N), alpha=0.8, linewidth=1.2, label=label
                )
        axes.set(xlabel="epoch", title=quantity.replace("val_", ""))
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss, accuracy = figure.axes
    # A run that diverges, or starts from raw pixels, would press all others together.
    finite = sorted(row["val_loss"] for result in results for row in result.validated if math.isfinite(row["val_loss"]))
    if finite:
        loss.set_ylim(finite[0] - 0.05, max(finite[int(0.95 * (len(finite) - 1))], finite[0] + 0.1) + 0.05)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI)
    write_whole(path, picture.getvalue())
