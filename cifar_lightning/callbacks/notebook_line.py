"""A line in a notebook that is drawn anew in its place."""

from typing import Any

from rich.console import Console, RenderableType


class NotebookLine:
    """The part of rich's `Live` that a progress line needs, for a notebook.

    `Live` itself draws with a widget there. A notebook that was saved, or is read on GitHub, has no widgets: it shows
    the text "Output()" in place of each. An output with an identity needs none, and can be emptied.

    Args:
        console: The console, which knows its width.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._output: Any = None  # IPython's handle of the output; None until there is something to show

    def start(self) -> None:
        """Do nothing: a line that is never drawn leaves no output."""

    def update(self, line: RenderableType, refresh: bool = True) -> None:
        """Draw the line in the cell that runs, at the first call, and from then on in its place."""
        from IPython.display import display

        if self._output is None:
            self._output = display(line, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        else:
            self._output.update(line)

    def stop(self) -> None:
        """Empty the output."""
        if self._output is not None:
            self._output.update({"text/plain": "", "text/html": ""}, raw=True)
            self._output = None
