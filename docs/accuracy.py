"""Draw the accuracies of docs/accuracy.csv against the minutes of training: python docs/accuracy.py."""

import csv
from pathlib import Path

from cifar_lightning.style import BLUE, GREY, VERMILLION, log_ticks, new_picture, save, style

HERE = Path(__file__).parent
#: Colour and label by kind of config.
KINDS = {"notebook": (BLUE, "the notebooks' networks"), "best": (VERMILLION, "configs/best")}
#: Names that would lie on others, and the alignment and offset in points that keep them apart.
PLACES = {
    "selu": ("center", 4, 9),
    "one_cycle": ("right", -7, -3),
    "he_swish": ("right", -6, -9),
    "alpha_dropout": ("left", 7, -1),
}


@style()
def draw(path: Path) -> None:
    """Draw a point per config, with the standard deviation over its seeds."""
    picture = new_picture(8, 4.4, "Test accuracy against the time of training")
    axes = picture.subplots()
    with (HERE / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for kind, (colour, label) in KINDS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        # (There is no deviation of a single seed.)
        minutes, accuracies, deviations = (
            [float(row[name] or "nan") for row in chosen] for name in ("minutes", "test_accuracy", "deviation")
        )
        axes.errorbar(minutes, accuracies, deviations, fmt="o", color=colour, label=label, elinewidth=1.2)
        for row, x, y in zip(chosen, minutes, accuracies, strict=True):
            side, right, up = PLACES.get(row["config"], ("left", 7, -3))
            axes.annotate(row["config"], (x, y), (right, up), textcoords="offset points", ha=side, fontsize=8.5)
    axes.set_xscale("log")
    axes.set_xlim(0.45, 130)
    log_ticks(axes.xaxis)
    axes.set_xlabel("minutes on one core of an AMD EPYC (Zen 5)", color=GREY)
    axes.set_ylabel("test accuracy, %", color=GREY)
    axes.legend(loc="upper left")
    save(picture, path)


if __name__ == "__main__":
    draw(HERE / "accuracy.png")
