"""The notebook: it names what there is, shows what came of it, and can be executed anew with no data and no network."""

import ast
import inspect
import json

import pytest
from conftest import ROOT

from cifar_lightning import DeepMLP, MLPClassifier

PATH = ROOT / "examples" / "exercise.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
#: What a test changes for the synthetic set, few images and few epochs, by what the notebook has.
SMALL = {'SOURCE = "cifar10"': 'SOURCE = "synthetic"', "EPOCHS = 5": "EPOCHS = 2", "10_000": "600"}
#: What takes a picture to the notebook.
DRAWN = ("draw_", "plot_", ".plot(")


def is_drawn(source):
    """Whether a cell ends in a picture."""
    return any(name in ast.unparse(ast.parse(source).body[-1]) for name in DRAWN)


def pictures(outputs):
    return [output for output in outputs if "image/png" in output.get("data", {})]


def texts(outputs):
    return ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]


def imported():
    """The objects that the notebook imports, by name; each of them must exist."""
    nodes = [node for source in CODE for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    namespace = {}
    for node in nodes:
        if not node.module.startswith("IPython"):
            exec(ast.unparse(node), namespace)
    return namespace


def test_calls_have_options_that_exist():
    namespace = imported()
    network = {*inspect.signature(DeepMLP).parameters, *inspect.signature(MLPClassifier).parameters}
    known = {name: {*inspect.signature(each).parameters} for name, each in namespace.items() if callable(each)}
    known["train"] = network
    calls = [node for source in CODE for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    checked = 0
    for call in calls:
        name = ast.unparse(call.func)
        if name in known and "kwargs" not in known[name]:
            options = known[name] | (network if name == "MLPClassifier" else set())
            assert {keyword.arg for keyword in call.keywords if keyword.arg} <= options, ast.unparse(call)
            checked += 1
    assert checked > 15


def test_it_has_been_executed_from_top_to_bottom():
    numbers = [cell["execution_count"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert numbers == [*range(1, len(CODE) + 1)], "expected docs/notebook.py to have executed it"
    assert "CIFAR-10: 45,000 training" in "".join(texts(sum(OUTPUTS, [])))


def test_it_fits_into_a_repository():
    assert PATH.stat().st_size < 500 * 1024


@pytest.mark.parametrize("form", ["stderr", "Output()", "widget", "/tmp/", "/home/", "/root/", "\\u001b[31m"])
def test_its_outputs_hold_nothing_of_one_machine_and_nothing_red(form):
    shown = [{key: value for key, value in output.items() if key != "data"} for output in sum(OUTPUTS, [])]
    data = [(kind, text) for output in sum(OUTPUTS, []) for kind, text in output.get("data", {}).items()]
    shown += [(kind, text if "png" not in kind else "") for kind, text in data]
    assert form not in json.dumps(shown)


def test_each_picture_is_there_once():
    for source, outputs in zip(CODE, OUTPUTS, strict=True):
        assert len(pictures(outputs)) == is_drawn(source), source


@pytest.fixture
def kernel(tmp_path):
    """Execute the sources of cells in a kernel of their own, in an empty folder, and return outputs and messages."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")

    class Client(nbclient.NotebookClient):
        messages = ()

        def process_message(self, message, cell, index):
            self.messages = [*self.messages, message]
            return super().process_message(message, cell, index)

    def kernel(*sources):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        resources = {"metadata": {"path": str(tmp_path)}}
        client = Client(notebook, timeout=600, kernel_name="python3", resources=resources, coalesce_streams=True)
        client.execute()
        return [cell.outputs for cell in notebook.cells], client.messages

    return kernel


@pytest.mark.slow
def test_it_runs_on_the_synthetic_set(kernel, tmp_path):
    sources = list(CODE)
    for old, new in SMALL.items():
        assert sum(old in source for source in sources) == 1, old
        sources = [source.replace(old, new) for source in sources]
    outputs, messages = kernel(*sources)
    every = sum(outputs, [])
    assert not [output for output in every if output.get("name") == "stderr"]
    for source, each in zip(sources, outputs, strict=True):
        assert len(pictures(each)) == is_drawn(source), source
    trainings = [each for source, each in zip(sources, outputs, strict=True) if "train(" in source]
    trainings = [each for each in trainings if any("epoch 1/2" in text for text in texts(each))]
    assert len(trainings) == 5
    for each in trainings:
        lines = [text for text in texts(each) if text.startswith("epoch ")]
        assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    drawn = [texts([message["content"]])[0] for message in messages if message["msg_type"] == "update_display_data"]
    assert any("epoch 2/2" in line and "━" in line for line in drawn)  # the bar, of which nothing is left
    assert not any("━" in text and "epoch" in text for text in texts(every))
    assert {path.name for path in (tmp_path / "runs" / "exercise").iterdir()} == set("bcdef")


@pytest.mark.slow  # a kernel takes seconds to start
@pytest.mark.parametrize("setup", ["", "%matplotlib inline\nimport matplotlib.pyplot as plt"])
def test_a_picture_is_drawn_once_with_and_without_pyplot(kernel, setup):
    outputs, _ = kernel(setup, "from cifar_lightning import OneCycle\nOneCycle().plot(20)", "OneCycle()")
    assert [len(pictures(each)) for each in outputs] == [0, 1, 0]
    assert texts(outputs[2]) == ["OneCycle()"]
