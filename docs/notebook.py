"""Execute examples/exercise.ipynb on CIFAR-10 and store the outputs in it: CIFAR10_DIR=... python docs/notebook.py."""

import base64
import io
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "examples" / "exercise.ipynb"
#: Lower resolution and fewer colours than usual keep the file small enough for a repository.
DPI, COLOURS = 130, 40
#: Keeps the colours of thin lines; other methods spend the palette on the greys at their edges.
QUANTIZE = Image.Quantize.MAXCOVERAGE
SETUP = f"from cifar_lightning import style\nstyle.DPI = {DPI}"


def reduce_picture(png: str) -> str:
    """Convert a base64 PNG to one with a palette."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        reduced, file = picture.convert("RGB").quantize(COLOURS, QUANTIZE, dither=Image.Dither.NONE), io.BytesIO()
    reduced.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def execute(notebook: NotebookNode) -> None:
    """Execute the notebook in an empty folder, after a setup cell that is then removed."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources=resources,
            record_timing=False,
            coalesce_streams=True,
        ).execute()
    del notebook.cells[0]
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = reduce_picture(png)


def main() -> None:
    """Execute the notebook and overwrite it with the result."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }  # without the Python version of whoever ran it
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
