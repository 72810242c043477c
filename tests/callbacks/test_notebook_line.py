import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from cifar_lightning.callbacks import progress_line
from cifar_lightning.callbacks.progress_line import ProgressLine


class Output:
    """IPython's handle of an output: what it showed, one after the other."""

    def __init__(self, shown):
        self.shown = [shown]

    def update(self, shown, raw=False):
        self.shown.append(shown)


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of the cell of a notebook."""
    outputs = []

    def display(shown, display_id):
        outputs.append(Output(shown))
        return outputs[-1]

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(progress_line, "get_console", lambda: Console(force_jupyter=True))
    return outputs


def test_a_line_is_one_output_that_is_empty_in_the_end(outputs):
    stderr = sys.stderr
    with ProgressLine() as line:
        for done in range(3):
            line.show("epoch 1/3", done, 3)
        assert sys.stderr is stderr  # a notebook's own is not torn
    (output,) = outputs
    assert [type(shown).__name__ for shown in output.shown] == ["Table", "Table", "Table", "dict"]
    assert not any(output.shown[-1].values())


def test_a_line_that_is_never_drawn_leaves_no_output(outputs):
    with ProgressLine():
        pass
    assert outputs == []


def test_a_second_job_has_a_line_of_its_own(outputs):
    line = ProgressLine()
    for _ in range(2):
        with line:
            line.show("test", 1, 2)
    assert len(outputs) == 2
