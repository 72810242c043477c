"""A line in a notebook that is updated in place."""

from typing import Any

from rich.console import Console, RenderableType


class NotebookLine:
    """Replaces rich's `Live` in a notebook, as far as a progress line needs it.

    `Live` itself draws with a widget there. Saved notebooks, and those viewed on GitHub, show the text "Output()" in
    place of each widget. An output with a display id needs no widget and can be cleared.

    Args:
        console: The console, which knows the width.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._output: Any = None  # IPython's display handle; None until there is something to show

    def start(self) -> None:
        """Do nothing, so that a line that is never drawn leaves no output."""

    def update(self, line: RenderableType, refresh: bool = True) -> None:
        """Draw the line in the running cell on the first call, and update it on later ones."""
        from IPython.display import display

        if self._output is None:
            self._output = display(line, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        else:
            self._output.update(line)

    def stop(self) -> None:
        """Clear the output."""
        if self._output is not None:
            self._output.update({"text/plain": "", "text/html": ""}, raw=True)
            self._output = None
