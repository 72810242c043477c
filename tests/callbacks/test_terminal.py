"""What a person sees in a terminal: one line an epoch that stays, and one line below that is drawn anew."""

import io
import re

import pytest
import rich
from conftest import SMALL
from screen import Screen, record

FIT = [
    "fit",
    *(flag for flag in SMALL if "enable" not in flag),
    "--model.hidden_sizes=2x8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=12",
    "--trainer.log_every_n_steps=1",
]
EPOCH = re.compile(r"epoch +(\d+)/12  train .*  val .*")


@pytest.fixture
def terminal(monkeypatch, run):
    """Run the command line as in a terminal of so many columns, drawing the line at each step; return its screen."""
    monkeypatch.setattr("cifar_lightning.callbacks.progress_line.PERIOD", 0)

    def terminal(columns, *args):
        before, file = vars(rich.get_console()).copy(), io.StringIO()
        rich.reconfigure(file=file, force_terminal=True, width=columns, legacy_windows=False)
        try:
            run(*args)
        finally:
            vars(rich.get_console()).update(before)
        return Screen(columns, file.getvalue())

    return terminal


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_one_line_an_epoch_stays_and_the_bar_is_one_line(terminal, columns):
    screen = terminal(columns, *FIT)
    epochs = [int(match[1]) for row in screen.rows if (match := EPOCH.match(row))]
    assert epochs == list(range(1, 13))
    assert [row for row in screen.rows if row.startswith("epoch ")] == [row for row in screen.rows if EPOCH.match(row)]
    bars = [row for row in screen.drawn if "━" in row and "/8" in row]
    assert any(re.match(r"epoch +3/12 ━+.* 5/8  \d+:\d\d left  loss \d\.\d+", bar) for bar in bars)
    assert not [row for row in screen.wrapped if "epoch" in row or "━" in row]
    assert "━" not in "".join(row for row in screen.rows if "/8" in row)  # nothing is left of it
    assert screen.cursor


def test_the_first_epoch_and_each_better_one_are_marked(terminal):
    rows = [row for row in terminal(80, *FIT).rows if EPOCH.match(row)]
    losses = [float(re.search(r"val loss ([\d.]+)", row)[1]) for row in rows]
    marked = [row.rstrip().endswith("best") for row in rows]
    assert marked == [loss == min(losses[: index + 1]) for index, loss in enumerate(losses)]


@pytest.mark.usefixtures("undrawn")
def test_the_network_comes_first_and_the_next_command_last(terminal):
    rows = [row for row in terminal(100, *FIT, "--trainer.callbacks+=LRFinder").rows if row.strip()]
    assert rows[0].startswith("Network: 2 x 8 selu, lecun_normal; 24,746 parameters")
    assert rows[1].startswith("Training: NAdam, Constant, lr 0.001; 240 images of synthetic in batches of 32, 60 to")
    assert rows[3].startswith("LRFinder: up to 300 steps")
    last = "".join(rows[-3:])
    assert re.search(r"next: cifar-lightning test --ckpt_path runs/default/[^/]+/checkpoints/best.ckpt$", last)


@pytest.mark.usefixtures("undrawn")
def test_in_a_file_there_are_no_control_characters(run):
    said = run(*FIT)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", said)
    assert len(re.findall(r"^epoch +\d+  train_loss", said, re.MULTILINE)) == 12


@pytest.mark.parametrize("columns", [80, *(pytest.param(width, marks=pytest.mark.slow) for width in (100, 120))])
def test_a_real_terminal(columns):
    screen, status, _ = record(columns, FIT)
    assert status == 0, screen.text
    assert len([row for row in screen.rows if EPOCH.match(row)]) == 12
    # No line is longer than the terminal is wide, but for a command that is there to be copied.
    assert not [row for row in screen.wrapped if not row.startswith("next: ")]
    assert not [row for row in screen.rows if "━" in row and "/8" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "missing"), [({"NO_COLOR": "1"}, r"\x1b\[\d*;?3\d"), ({"TERM": "dumb"}, r"\x1b")]
)
def test_terminals_without_colours_or_cursor(environment, missing):
    screen, status, written = record(80, FIT, **environment)
    assert status == 0
    assert len([row for row in screen.rows if EPOCH.match(row)]) == 12
    assert not re.search(missing, written)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(run):
    screen, status, _ = record(80, [*FIT, "--trainer.max_epochs=10000"], interrupt_at="epoch     4/10000  train")
    assert status != 0
    command = re.search(
        r"to resume: cifar-lightning (fit --ckpt_path \S+/checkpoints/last\.ckpt)", screen.text.replace("\n", "")
    )
    assert command, screen.text
    assert "weights_only" not in screen.text
    assert not [row for row in screen.rows if "━" in row and "/8" in row]
    assert screen.cursor
    assert "best epoch" in run(*command[1].split(), "--trainer.max_epochs=6")
