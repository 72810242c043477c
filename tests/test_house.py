"""The house: which folder may import which, and where private names of torch and Lightning may stand."""

import ast
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cifar_lightning"
#: From below to above: a folder imports those before it.
FLOORS = [
    {"errors", "files", "extras", "primitives"},
    {"style"},
    {"nn", "optim", "data"},
    {"compiled"},
    {"analysis"},
    {"export"},
    {"training"},
    {"callbacks"},
    {"cli"},
    {"experiments"},
]
LIGHTNING = {"training", "callbacks", "cli", "experiments"}
#: The two doors.
PRIVATE = ("compiled/", "training/lightning_internals.py")

FILES = sorted(path for folder in FLOORS for name in folder for path in PACKAGE.glob(f"{name}/**/*.py")) + sorted(
    path for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


def place(path):
    return path.relative_to(PACKAGE).as_posix()


def floor(name):
    (number,) = (number for number, names in enumerate(FLOORS) if name in names)
    return number


def imports(path):
    """The modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_arrows_run_one_way(path):
    folder = place(path).partition("/")[0].removesuffix(".py")
    for module in imports(path):
        top, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if top == "cifar_lightning" and other not in (folder, "__version__"):
            assert floor(other) < floor(folder), f"{place(path)} imports {module}, which stands beside or above it"
        if top in ("lightning", "pytorch_lightning"):
            assert folder in LIGHTNING, f"{place(path)} imports {module}, below the wall"


def own_names(tree):
    """Private names that a file defines or sets itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", [path for path in FILES if not place(path).startswith(PRIVATE)], ids=place)
def test_private_names_of_others_stand_behind_two_doors(path):
    tree = ast.parse(path.read_text())
    own = set(own_names(tree)) | set(re.findall(r"^    (_\w+):", path.read_text(), re.MULTILINE))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            public = node.attr == "_replace"  # of every NamedTuple
            assert of_self or public or node.attr in own, f"{place(path)}:{node.lineno} uses {ast.unparse(node)}"
    for module in imports(path):
        if module.startswith(("torch.", "lightning.", "torchmetrics.")):
            assert "._" not in module, f"{place(path)} imports {module}"


def test_the_two_doors_are_used():
    assert any("._" in (PACKAGE / door).read_text() for door in PRIVATE if door.endswith(".py"))


@pytest.mark.parametrize("path", FILES, ids=place)
def test_modules_are_short(path):
    code = re.sub(r"\n    Example:\n( {8}.*\n)+", "", path.read_text())  # what doctest runs is no code of the module
    assert len(code.splitlines()) <= 300, f"{place(path)} is long: is it still one subject?"
