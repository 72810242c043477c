import re
import sys
import tomllib

import pytest
from conftest import ROOT

from cifar_lightning.extras import EXTRAS, missing_modules, require

#: Extras that no command of the package needs.
OTHERS = {"test", "examples", "notebook", "docs"}


def test_the_extras_are_those_of_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name: {re.match(r"[\w-]+", line)[0] for line in extras[name]} for name in extras if name not in OTHERS}
    assert named == {name: set(modules) for name, modules in EXTRAS.items()}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_is_installed(extra):
    assert missing_modules(extra) == []
    require(extra)  # raises nothing


@pytest.mark.parametrize(("extra", "module"), [(extra, module) for extra in EXTRAS for module in EXTRAS[extra]])
def test_an_extra_that_lacks_a_module(monkeypatch, extra, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'expected .*, got no {module}.*pip install "cifar_lightning\[{extra}\]"'):
        require(extra)
