import json
import subprocess
import sys

import pytest
import torch
from small_networks import CLASSES, make_images, make_network

from cifar_lightning import MLPClassifier, load_network
from cifar_lightning.export.safetensors_files import write_safetensors

pytest.importorskip("safetensors")


def write_checkpoint(path, **changes):
    """A checkpoint with all that counts in it, of a network as in `small_networks`."""
    network = make_network()
    checkpoint = {
        "state_dict": network.state_dict(),
        "hyper_parameters": network.options["network"] | {"lr": 0.1, "optimizer": "NAdam"},
        "classes": list(CLASSES),
    }
    torch.save(checkpoint | changes, path)
    return network


def test_a_checkpoint(tmp_path):
    network = write_checkpoint("a.ckpt")
    loaded = load_network("a.ckpt")
    assert not loaded.training
    assert loaded.classes == CLASSES
    assert torch.equal(loaded(make_images()), network(make_images()))


def test_safetensors(tmp_path):
    network = make_network(activation_args=None, normalization="batch")
    write_safetensors(network, tmp_path / "a.safetensors")
    loaded = load_network(tmp_path / "a.safetensors")
    assert not loaded.training
    assert loaded.options == network.options
    assert torch.equal(loaded(make_images()), network(make_images()))


def test_neither_lightning_nor_the_data_set_is_imported():
    write_checkpoint("a.ckpt")
    code = (
        "import sys, cifar_lightning; cifar_lightning.load_network('a.ckpt')\n"
        "print({'lightning', 'torchvision', 'torchmetrics', 'matplotlib', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_a_network_that_was_not_trained():
    classifier = MLPClassifier(hidden_sizes=[4])
    torch.save({"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}, "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: expected a trained network with statistics"):
        load_network("a.ckpt")


@pytest.mark.parametrize("changes", [{"hyper_parameters": {"hidden_sizes": [4]}}, {"state_dict": {"a": torch.ones(1)}}])
def test_parts_that_do_not_belong_together(changes):
    write_checkpoint("a.ckpt", **changes)
    with pytest.raises(ValueError, match=r"wrong file a\.ckpt: expected the network of an MLPClassifier"):
        load_network("a.ckpt")


@pytest.mark.parametrize(
    ("content", "received"),
    [(b"", "header too small"), (b"\x08\0\0\0\0\0\0\0{}      ", "neither 'cifar_lightning'"), (b"a" * 100, "")],
)
def test_a_file_that_is_something_else(tmp_path, content, received):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong file .*a\.safetensors: expected one that cifar-lightning") as error:
        load_network(tmp_path / "a.safetensors")
    assert received.lower() in str(error.value).lower()


@pytest.mark.parametrize("name", ["none.ckpt", "none.safetensors", "."])
def test_a_file_that_is_not_there(name):
    with pytest.raises(ValueError, match=r"no such (file|checkpoint): expected"):
        load_network(name)


def test_metadata_of_wrong_types(tmp_path):
    from safetensors.torch import save_file

    for text in ("[]", "{}", '{"model": 3}', json.dumps({"model": {"network": 3}})):
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"cifar_lightning": text})
        with pytest.raises(ValueError, match="wrong file"):
            load_network(tmp_path / "a.safetensors")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r'no safetensors.*pip install "cifar_lightning\[export\]"'):
        load_network("a.safetensors")
