"""Every private name of Lightning that the package uses is there; the functions are tested by what is built on them."""

import ast
import inspect

import pytest
from conftest import ROOT
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging

TRAINER = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
#: Where names may be: a name that is in none of these is missing.
PLACES = (
    TRAINER,
    TRAINER.fit_loop,
    TRAINER.fit_loop.epoch_loop,
    TRAINER.fit_loop.epoch_loop.automatic_optimization,
    TRAINER._accelerator_connector,
    TRAINER._data_connector,
    TRAINER._checkpoint_connector,
    TRAINER._logger_connector,
    TRAINER._callback_connector,
    TRAINER._signal_connector,
    ModelCheckpoint(),
    EarlyStopping("val_loss"),
    LightningModule(),
    WeightAveraging(),
)
TREE = ast.parse((ROOT / "cifar_lightning" / "training" / "lightning_internals.py").read_text())
NAMES = sorted({node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute) and node.attr.startswith("_")})
NAMES = [name for name in NAMES if not name.startswith("__")]


def test_there_are_names():
    assert "_skip_backward" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name):
    if name == "_hparams_initial":  # which save_hyperparameters makes
        module = LightningModule()
        module.save_hyperparameters({"lr": 1})
        assert module._hparams_initial == {"lr": 1}
        return
    assert any(hasattr(place, name) for place in PLACES), f"lightning has no {name} any more"


def test_each_function_says_why():
    for node in TREE.body:
        if isinstance(node, ast.FunctionDef):
            assert inspect.cleandoc(ast.get_docstring(node) or ""), node.name
