import math
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from pictures import problems, words
from PIL import Image

from cifar_lightning import LayerSignal, LRSweep, plot_signals
from cifar_lightning.analysis.plots import (
    draw_confusion_matrix,
    draw_images,
    draw_learning_curves,
    draw_reliability,
    draw_schedule,
    draw_signals,
    draw_sweep,
    draw_sweep_curves,
    draw_variants,
)
from cifar_lightning.optim.lr_rules import RULES
from cifar_lightning.style import COLOURS, RIGHT, WRONG

QUANTITIES = [field.name for field in fields(LayerSignal)]
TITLE = (
    "a title as long as that of a run whose config has a long name, on CIFAR-10 (2,500 images), validation $split$ " * 2
)
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES = [f"class $number {k} with a $long_name" for k in range(100)]


def epochs(count, **others):
    """Rows of a training that is best in epoch 3."""
    return [
        {
            "epoch": float(epoch),
            "lr": 0.1 / epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 1 - 0.9 / epoch,
            "val_loss": 1 + 0.1 * abs(epoch - 3),
            "val_accuracy": 0.5,
        }
        | others
        for epoch in range(1, count + 1)
    ]


def swept(count=150, losses=None):
    lrs = [1e-5 * 1.1**step for step in range(count)]
    return LRSweep(lrs, losses or [2.3 - 0.01 * step for step in range(count)], 150)


def signals(epochs, layers=4, value=0.5, **others):
    values = dict.fromkeys(QUANTITIES, value) | {"input_share": 1.0} | others
    return [{"epoch": epoch, "layer": layer, **values} for epoch in epochs for layer in range(layers)]


def curve(*counts):
    bins = len(counts)
    middles = (torch.arange(bins) + 0.5) / bins
    return {"counts": torch.tensor(counts), "confidence": middles, "accuracy": middles - 0.1}


def predictions(count, classes, labels=None, std=False):
    probabilities = torch.randn(count, len(classes), generator=torch.Generator().manual_seed(1)).softmax(-1)
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    captions = [f"a_file_with_a_long_name_{i}.png" for i in range(count)]
    return images, probabilities, captions, classes, None, TITLE, probabilities / 9 if std else None, labels


def evenly(steps, steps_per_epoch):
    """When each step is made, and when the last one is over, in epochs."""
    return [step / steps_per_epoch for step in range(steps + 1)]


def confusion(classes):
    return torch.randint(0, 99, (classes, classes), generator=torch.Generator().manual_seed(1))


CASES = {
    "learning curves": lambda: draw_learning_curves(epochs(24), title=TITLE),
    "learning curves of one epoch": lambda: draw_learning_curves(epochs(1), title=TITLE),
    "learning curves of 200 epochs": lambda: draw_learning_curves(epochs(200), title="short"),
    "learning curves of nothing finite": lambda: draw_learning_curves(
        epochs(3, val_loss=math.nan, train_loss=math.nan), title=TITLE
    ),
    "learning curves that diverge": lambda: draw_learning_curves(
        [*epochs(3), {"epoch": 4.0, "lr": 0.1, "train_loss": 1e30, "val_loss": math.inf}]
    ),
    "a sweep of two": lambda: draw_sweep_curves({"lr=0.1": epochs(5), "lr=0.01": epochs(5)}, title=TITLE),
    "a sweep of 60": lambda: draw_sweep_curves(
        {f"model.lr={lr / 100}, model.activation=selu, optimizer.momentum=0.9": epochs(1) for lr in range(1, 61)}
    ),
    "a sweep without rates": lambda: draw_sweep_curves(
        {f"a config with a name that is longer than most names {i}": epochs(5) for i in range(9)}, title=TITLE
    ),
    "a finder": lambda: draw_sweep(swept(), title=TITLE),
    "a finder that fails": lambda: draw_sweep(swept(4, [2.3, 2.2, math.nan, math.nan]), title=TITLE),
    "a finder without a loss": lambda: draw_sweep(swept(4, [math.inf] * 4)),
    "a schedule": lambda: draw_schedule([i / 1e4 for i in range(3000)], [0.9] * 3000, evenly(3000, 100), title=TITLE),
    "a schedule of one step": lambda: draw_schedule([0.1], [0.9], evenly(1, 1407)),
    "a schedule of momentum": lambda: draw_schedule([0.1, 0.2] * 9, [0.95, 0.85] * 9, evenly(18, 6), title=TITLE),
    "signals": lambda: draw_signals(signals(range(5), 22), title=TITLE),
    "signals of one layer and epoch": lambda: draw_signals(signals([0], 1), title=TITLE),
    "signals of 100 epochs with dropout": lambda: draw_signals(signals(range(0, 101, 4), 22, input_share=0.5)),
    "signals of two orders": lambda: draw_signals(
        signals([0], 22) + signals([1, 2], 22, value=1e-9, activation_mean=3e7), title=TITLE
    ),
    "reliability": lambda: draw_reliability({"deterministic": curve(*range(900, 915))}, title=TITLE),
    "reliability of three": lambda: draw_reliability(dict.fromkeys(["x" * 60, "b", "c"], curve(0, 9, 1)), title=TITLE),
    "reliability of nothing": lambda: draw_reliability({"deterministic": curve(0, 0, 0)}),
    "confusion of 2": lambda: draw_confusion_matrix(confusion(2), NAMES[:2], title=TITLE),
    "confusion of 10": lambda: draw_confusion_matrix(confusion(10), TEN, title=TITLE),
    "confusion of 20": lambda: draw_confusion_matrix(confusion(20), NAMES[:20], title=TITLE),
    "confusion of 100": lambda: draw_confusion_matrix(confusion(100), NAMES, title=TITLE),
    "images": lambda: draw_images(*predictions(12, TEN, [3] * 12, std=True)),
    "images of files": lambda: draw_images(*predictions(3, TEN)),
    "one image of two classes": lambda: draw_images(*predictions(1, NAMES[:2], [0])),
    "training images": lambda: draw_variants(
        torch.rand(3, 4, 3, 32, 32) * 255, [["airplane 49%\nautomobile 43%"] * 4] * 3, ["epoch 100"] * 4, title=TITLE
    ),
    "images of 100 classes": lambda: draw_images(*predictions(4, NAMES, [99] * 4)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", CASES.values(), ids=CASES)
def test_nothing_is_cut_or_covered(draw):
    assert problems(draw()) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_signals_that_have_vanished_or_exploded_are_drawn(value):
    draw_signals(signals([0, 1], value=value), Path("signals.png"))
    with Image.open("signals.png") as picture:
        assert picture.width == 1800


# -------------------------------------------------------------------------------------------------------- trainings


def panels(figure):
    return {axes.get_title(loc="left") or axes.get_ylabel(): axes for axes in figure.axes}


def drawn(axes, label):
    """The points of the lines of a label."""
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_label() == label]


def test_learning_curves_show_what_is_known():
    first = {"epoch": 1.0, "lr": 0.1, "train_loss": 2.0, "val_loss": 1.9, "val_accuracy": 0.3}
    parts = panels(draw_learning_curves([first, {"epoch": 2.0, "lr": 0.1, "train_loss": 1.0}]))
    assert drawn(parts["loss"], "training") == [[(1, 2.0), (2, 1.0)]]
    assert drawn(parts["loss"], "validation") == [[(1, 1.9)]]
    assert drawn(parts["accuracy"], "training") == []
    assert drawn(parts["accuracy"], "validation") == [[(1, 0.3)]]


def test_the_best_epoch_is_marked_in_every_panel():
    figure = draw_learning_curves(epochs(5))
    parts = panels(figure)
    label = "lowest validation loss: 1 in epoch 3"
    assert drawn(parts["loss"], label) == [[(3, 1.0)]]
    assert drawn(parts["accuracy"], label) == [[(3, 0.5)]]
    for axes in parts.values():
        assert drawn(axes, "_best")[0][0][0] == 3
    assert words(figure).count(label) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_without_a_finite_loss_has_no_best_epoch(loss):
    assert "lowest" not in words(draw_learning_curves(epochs(3, val_loss=loss)))


def test_the_rate_holds_until_the_next_that_is_known():
    rates = [(0.0, 0.1), (0.5, 0.2), (1.0, 0.3)]
    (line,) = (line for line in panels(draw_learning_curves(epochs(2), None, "", rates))["learning rate"].lines[:1])
    assert list(zip(*line.get_data(), strict=True)) == [*rates, (2.0, 0.05)]
    assert line.get_drawstyle() == "steps-post"


@pytest.mark.parametrize(
    ("losses", "scale"), [([2.3, 1.4, 1.2], "linear"), ([2.3, 1e4, 1e20], "log"), ([2, 0], "linear")]
)
def test_losses_of_other_orders_can_be_told_apart(losses, scale):
    rows = [{"epoch": epoch, "lr": 0.1, "train_loss": loss} for epoch, loss in enumerate(losses, 1)]
    assert panels(draw_learning_curves(rows))["loss"].get_yscale() == scale


def test_a_sweep_is_drawn_by_rate():
    runs = {f"seed={seed}_lr={lr}": epochs(4, val_loss=lr + seed) for lr in (0.1, 0.003, 0.01) for seed in (1, 2)}
    figure = draw_sweep_curves(runs)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    colours = {name: to_rgba(line.get_color()) for name, line in lines.items()}
    assert colours["seed=1_lr=0.1"] == colours["seed=2_lr=0.1"]
    assert len(set(colours.values()) - {colours["_best"]}) + 1 == 3
    assert lines["seed=1_lr=0.1"].get_linestyle() != lines["seed=2_lr=0.1"].get_linestyle()
    named = [text.get_text().split()[-1] for text in figure.axes[1].get_legend().get_texts()]
    assert named == [f"seed={seed}_lr={lr}" for lr in (0.003, 0.01, 0.1) for seed in (1, 2)]
    assert drawn(figure.axes[0], "_best") == [[(1, 1.003)]]


def test_a_large_sweep_names_its_best():
    figure = draw_sweep_curves({f"lr={lr}": epochs(1, val_loss=float(lr)) for lr in range(1, 61)})
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert texts[0] == "1.0000  lr=1"
    assert texts[19:] == ["20.0000  lr=20", "and 40 more with a higher loss"]
    assert len(figure.axes[0].lines) == 61  # with the mark


# ------------------------------------------------------------------------------------------------------------ rates


@pytest.mark.parametrize(
    ("momenta", "names"),
    [([0.9] * 30, ["learning rate"]), ([0.95 - step / 100 for step in range(30)], ["learning rate", "momentum"])],
)
def test_momentum_is_drawn_if_it_moves(momenta, names):
    figure = draw_schedule([0.1] * 30, momenta, evenly(30, 10))
    assert [axes.get_ylabel() for axes in figure.axes] == names
    assert list(figure.axes[0].lines[0].get_xdata()) == list(range(31))
    assert {"step", "epoch"} <= set(words(figure).split("\n"))


def test_epochs_stand_where_their_steps_do_though_steps_become_longer():
    figure = draw_schedule([0.1] * 6, [], [0, 0.25, 0.5, 0.75, 1, 1.5, 2])
    (above,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    ticks = {label.get_text(): label.get_window_extent() for label in above.get_xticklabels()}
    places = {name: (box.x0 + box.x1) / 2 for name, box in ticks.items()}
    for epoch, step in {"0": 0, "1": 4, "2": 6}.items():
        assert places[epoch] == pytest.approx(figure.axes[0].transData.transform((step, 0))[0], abs=1)


def test_a_suggestion_lies_on_the_smoothed_loss():
    sweep = swept()
    lines = {line.get_label(): line for line in draw_sweep(sweep, "steep").axes[0].lines}
    for rule, lr in sweep.suggestions().items():
        (label,) = (label for label in lines if label.startswith(f"{rule}:"))
        assert label.endswith("(taken)") == (rule == "steep")
        ((x,), (y,)) = lines[label].get_data()
        assert x == lr
        assert y == sweep.smoothed[min(range(150), key=lambda step: abs(sweep.lrs[step] - lr))]
    assert len({line.get_marker() for line in lines.values()} - {"None"}) == 5  # told apart in black and white


def test_suggestions_of_one_rate_do_not_cover_each_other(monkeypatch):
    monkeypatch.setattr(LRSweep, "suggestions", lambda sweep: dict.fromkeys(RULES, sweep.lrs[70]))
    figure = draw_sweep(swept())
    figure.draw_without_rendering()
    marks = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    heights = sorted(line.get_transform().transform(line.get_xydata())[0, 1] for line in marks)
    assert len(heights) == 5
    assert all(above - below > 16 for below, above in pairwise(heights))  # pixels


def test_a_failed_sweep_says_why():
    assert "no suggestion: the sweep\ndiverged at once" in words(draw_sweep(swept(4, [math.inf] * 4)))


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("share", "quantities"), [(1.0, QUANTITIES[:4]), (0.5, QUANTITIES)])
def test_the_share_of_the_input_is_drawn_where_there_is_dropout(share, quantities):
    parts = panels(draw_signals(signals([0, 1, 2], input_share=share)))
    titles = [name.replace("_", " ").replace("std", "standard deviation") for name in quantities]
    assert {title: len(axes.lines) for title, axes in parts.items() if title in titles} == dict.fromkeys(titles, 3)


def test_signals_have_one_legend_and_one_scale_of_epochs():
    figure = draw_signals(signals(range(4)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["initialization"]
    assert not any(axes.get_legend() for axes in figure.axes)
    (scale,) = (axes for axes in figure.axes if axes.get_ylabel() == "epoch")
    assert [label.get_text() for label in scale.get_yticklabels()] == ["1", "2", "3"]


def test_measured_signals_are_drawn_in_a_line():
    signal = LayerSignal(0.1, 1.0, 0.0, 1e-3, 1.0)
    figure = plot_signals({0: [signal] * 3, 5: [signal] * 3})
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3]
    assert len(figure.axes[0].lines) == 2
    assert len(plot_signals([signal]).axes[0].lines) == 1


# ------------------------------------------------------------------------------------------------------ evaluations


def test_reliability_tells_ece_and_counts():
    figure = draw_reliability({"deterministic": curve(0, 30, 10)})
    assert "deterministic: ECE 0.100" in words(figure)
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0, 30, 10]
    assert {"30", "10"} <= set(words(figure).split("\n"))
    points, *_ = figure.axes[0].containers[0]
    assert list(points.get_xdata()) == pytest.approx([1 / 2, 5 / 6])  # an empty bin has no accuracy


def test_a_confusion_matrix_has_counts_and_shares_by_row():
    counts = torch.tensor([[90, 10, 0], [1, 999, 0], [0, 0, 0]])
    figure = draw_confusion_matrix(counts, ["a", "b", "c"])
    cells = {}
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        cells.setdefault((round(row), column), []).append(text.get_text())
    assert cells == {(0, 0): ["90%", "90"], (0, 1): ["10%", "10"], (1, 0): ["<1%", "1"], (1, 1): ["100%", "999"]}


@pytest.mark.parametrize(
    ("label", "title", "colour"),
    [(0, "✓ cat 70%", RIGHT), (1, "✗ cat 70%\ntrue: dog", WRONG), (None, "cat 70%", None)],
)
def test_right_and_wrong_are_told_apart_by_more_than_colour(label, title, colour):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    figure = draw_images(images, torch.tensor([[0.7, 0.3]]), ["image 5"], ["cat", "dog"], labels=[label])
    picture, bars = figure.axes
    assert picture.get_title(loc="left") == title
    assert picture.get_xlabel() == "image 5"
    assert picture.spines["left"].get_visible() == (label is not None)
    if colour is not None:
        assert to_rgba(picture.spines["left"].get_edgecolor()) == to_rgba(colour)
    assert [text.get_fontweight() for text in bars.get_yticklabels()] == [
        "bold" if k == label else "normal" for k in range(2)
    ]
    assert [text.get_text() for text in bars.get_xticklabels()] == ["0%", "50%", "100%"]


def test_of_100_classes_the_most_probable_and_the_true_one_have_bars():
    probabilities = torch.arange(100.0)[None] / 4950
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    figure = draw_images(images, probabilities, [""], [f"c{k}" for k in range(100)], labels=[7])
    shown = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert shown == [*(f"c{k}" for k in range(99, 89, -1)), "c7"]


def test_lines_have_colours_of_the_palette():
    lines = [line for axes in draw_learning_curves(epochs(4)).axes for line in axes.lines if line.get_label()[0] != "_"]
    assert {line.get_color() for line in lines} <= set(COLOURS)


def test_a_figure_is_returned_and_a_file_only_written_on_request():
    assert isinstance(draw_learning_curves(epochs(2)), Figure)
    assert not list(Path().iterdir())
    draw_learning_curves(epochs(2), Path("curves.png"))
    assert [path.name for path in Path().iterdir()] == ["curves.png"]


def test_no_epoch_is_named_beyond_the_last():
    (above,) = draw_schedule([0.1] * 30, [], evenly(30, 2)).axes[0].child_axes  # 15 epochs, where ticks are even
    assert max(above.get_xticks()) == 14
