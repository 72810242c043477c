"""An extension of griffe, which parses the docstrings but only knows `Examples:`, and treats `Example:` as text."""

from typing import Any

from griffe import Extension, Object


class SingleExamples(Extension):
    """Treats `Example:` as `Examples:`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
