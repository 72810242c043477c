"""An extension of griffe, which reads the docstrings: it would set an `Example:` as prose, knowing `Examples:` only."""

from typing import Any

from griffe import Extension, Object


class SingleExamples(Extension):
    """Takes an `Example:` for `Examples:`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
