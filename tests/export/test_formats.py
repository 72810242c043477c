"""Each format computes what its network does, on batches of any size, and refuses what is no batch of images."""

import json

import pytest
import torch
from small_networks import CLASSES, SMALL, make_images, make_network

from cifar_lightning import ImageNetwork
from cifar_lightning.export.formats import SUFFIXES, TOLERANCE, compare, load, write
from cifar_lightning.export.onnx_files import load_onnx, quantize, write_onnx
from cifar_lightning.export.torch_export_files import EXTRA_FILE, write_program

for module in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(module)


@pytest.fixture(scope="module", params=SUFFIXES)
def exported(request, tmp_path_factory):
    """A format, a network of several kinds of layers, and its file, loaded."""
    network = make_network(normalization="batch", dropout="standard", dropout_position="all", max_norm=1.0)
    path = tmp_path_factory.mktemp("exported") / f"net{SUFFIXES[request.param]}"
    write(network, path, request.param)
    return request.param, network, path, load(path, request.param)


@pytest.mark.parametrize("count", [1, 2, 33])
def test_the_probabilities_are_those_of_the_network(exported, count):
    _, network, _, run = exported
    compared = compare(run, network, make_images(count))
    assert compared.difference <= TOLERANCE
    torch.testing.assert_close(compared.probabilities.sum(1), torch.ones(count))


@pytest.mark.parametrize("position", [0, -1])
def test_a_file_that_computes_no_numbers_is_not_the_network(position):
    network = make_network()

    def run(images):
        probabilities = network.predict_proba(images)
        probabilities[position, 2] = torch.nan
        return [probabilities]

    assert not compare(run, network, make_images(5)).difference <= TOLERANCE


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 4, dtype=torch.uint8)])
def test_wrong_images_are_refused_and_named(exported, images):
    with pytest.raises(Exception, match=r"(?i)uint8|byte|dimension|\[2\] == 4"):
        exported[3](images)


def test_the_metadata_has_the_classes(exported):
    name, _, path, _ = exported
    if name == "onnx":
        import onnxruntime

        metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        found = json.loads(metadata["classes"]), json.loads(metadata["shape"])
    elif name == "torch-export":
        extra = {EXTRA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        content = json.loads(extra[EXTRA_FILE])
        found = content["classes"], content["shape"]
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()["classes"]), json.loads(file.metadata()["shape"])
    assert found == (list(CLASSES), [3, 4, 4])


@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_monte_carlo_dropout_with_seeds(tmp_path, name):
    network = make_network(dropout="alpha", dropout_p=0.3)
    path = tmp_path / f"net{SUFFIXES[name]}"
    write(network, path, name, samples=True)
    run = load(path, name)
    assert compare(run, network, make_images(), samples=True).difference <= TOLERANCE
    outputs = [run(make_images(1), torch.arange(samples)) for samples in (1, 7, 7)]
    assert [output.shape for output in outputs[1]] == [(1, 3), (1, 3), (1,)]
    assert torch.equal(outputs[1][0], outputs[2][0])
    assert outputs[0][1].max() == 0  # the spread of one pass
    assert outputs[1][1].max() > 0


def test_eight_bits_change_little(tmp_path):
    network = make_network()
    write_onnx(network, tmp_path / "net.onnx")
    quantize(tmp_path / "net.onnx", tmp_path / "int8.onnx")
    assert 0 < compare(load_onnx(tmp_path / "int8.onnx"), network, make_images()).difference < 0.1


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j1(x)


class Branch(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("write", "activation", "said"),
    [
        (write_onnx, Bessel, "cannot export to ONNX: .*bessel_j1"),
        (write_program, Branch, "cannot trace the network: expected a forward"),
    ],
)
def test_what_can_not_be_exported_is_named_and_leaves_no_file(tmp_path, write, activation, said):
    network = ImageNetwork(SMALL | {"activation": f"{activation.__module__}.{activation.__name__}"}, CLASSES, (3, 4, 4))
    with pytest.raises(ValueError, match=said) as error:
        write(network, tmp_path / "net")
    assert len(str(error.value)) < 500
    assert list(tmp_path.iterdir()) == []


def test_safetensors_hold_no_code(tmp_path):
    with pytest.raises(ValueError, match="safetensors files hold no code .*: expected --format onnx or torch-export"):
        write(make_network(dropout="alpha"), tmp_path / "a.safetensors", "safetensors", samples=True)
