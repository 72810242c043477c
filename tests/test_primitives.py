import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_lightning import CIFAR10DataModule, MLPClassifier
from cifar_lightning.primitives import as_primitives

SGD = {"class_path": "SGD", "init_args": {"momentum": np.float32(0.5)}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("selu"), "selu"),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor(0.5), 0.5),
        (Path("data"), "data"),
        ([np.float64(0.5), {"betas": (np.float64(0.5), 1)}], [0.5, {"betas": (0.5, 1)}]),
        (None, None),
    ],
)
def test_the_value_stays_and_the_type_becomes_pythons(value, expected):
    made = as_primitives(value)
    assert repr(made) == repr(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": np.float64(0.01)},
        {"optimizer": SGD, "mixup": np.float64(0.2), "label_smoothing": np.float32(0.5)},
        {"hidden_sizes": np.array([8, 8]), "dropout": "alpha", "dropout_p": np.float64(0.2)},
        {"hidden_sizes": [np.int64(8)], "max_norm": torch.tensor(1.0), "norm_eps": np.float64(1e-3)},
    ],
)
def test_hyperparameters_given_in_numpy_are_primitives(options):
    hparams = dict(MLPClassifier(**({"hidden_sizes": [8]} | options)).hparams)
    assert json.loads(json.dumps(hparams)) == hparams


def test_options_of_the_data_given_in_numpy_are_primitives():
    data = CIFAR10DataModule(Path("data"), batch_size=np.int64(8), flip=np.bool_(True), shift=np.int64(2))
    assert json.loads(json.dumps(dict(data.hparams))) == dict(data.hparams)
    assert data.hparams.data_dir == "data"
