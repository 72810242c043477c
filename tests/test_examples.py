"""Each example is run, on small data."""

import io
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from cifar_lightning.data.synthetic import synthetic_images

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _as_scripts(monkeypatch):
    """The examples can be imported, as Python lets a script import those beside it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield
    for name in {path.stem for path in EXAMPLES.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def test_each_is_tested_and_says_what_it_shows():
    tests = (ROOT / "tests" / "test_examples.py").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text().startswith('"""'), path.name
        assert f"import {path.stem}" in tests or path.stem == "small_cnn", path.name


def test_plain_pytorch(capsys):
    import plain_pytorch

    torch.manual_seed(0)
    _, (images, labels), _ = synthetic_images(200, 1)
    model = plain_pytorch.train(images, labels, epochs=12, batch_size=16, lr=0.01)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0] - 0.5
    assert torch.eq(model(images).argmax(1), labels).float().mean() > 0.3


def test_tabular():
    pytest.importorskip("skorch")
    import tabular
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    torch.manual_seed(0)
    found = tabular.search(features.astype("float32"), classes, epochs=3)
    assert found.best_score_ > 0.85
    assert found.predict_proba(features[:3].astype("float32")).sum(1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_own_sequential():
    import own_sequential

    torch.manual_seed(0)
    losses = own_sequential.train(60, backend="aot_eager")
    assert sum(losses[-10:]) < sum(losses[:10]) / 1.5


def test_find_lr_of_a_cnn(capfd):
    import find_lr_of_a_cnn

    torch.manual_seed(0)
    trainer = find_lr_of_a_cnn.main(epochs=2, num_steps=60)
    found = trainer.lightning_module.hparams["lr"]
    assert found != 0.05
    assert trainer.callback_metrics["val_accuracy"] > 0.6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(found / 10_000)  # the cycle's end


def test_cifar10_for_a_cnn(capfd):
    import cifar10_for_a_cnn

    trainer = cifar10_for_a_cnn.main(epochs=1, source="synthetic", synthetic_size=300, val_size=60)
    assert trainer.global_step == 4
    assert "validation accuracy" in capfd.readouterr().out


def test_mc_dropout_on_a_convnet():
    import mc_dropout_on_a_convnet

    prediction = mc_dropout_on_a_convnet.main(samples=4, images=2, size=32)
    assert prediction.std.max() > 0


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The web service of an exported network, asked as by HTTP."""
    for module in ("onnxscript", "onnxruntime", "fastapi", "python_multipart"):
        pytest.importorskip(module)
    from cifar_lightning import ImageNetwork
    from cifar_lightning.export.onnx_files import write_onnx

    write_onnx(ImageNetwork({"hidden_sizes": [8]}, [*"abcdefghij"]).eval(), tmp_path / "net.onnx")
    monkeypatch.setenv("MODEL", str(tmp_path / "net.onnx"))
    testclient = pytest.importorskip("fastapi.testclient")
    import web_service

    return testclient.TestClient(web_service.app)


def test_web_service(service):
    from PIL import Image

    for mode in ("RGB", "L", "RGBA", "P"):
        file = io.BytesIO()
        Image.new(mode, (40, 30)).save(file, "PNG")
        answer = service.post("/predict", files={"image": file.getvalue()})
        assert answer.status_code == 200
        assert list(answer.json()) == [*"abcdefghij"]
        assert sum(answer.json().values()) == pytest.approx(1, abs=1e-5)
    for content in (b"no image", file.getvalue()[:40]):
        answer = service.post("/predict", files={"image": content})
        assert (answer.status_code, "not an image" in answer.json()["detail"]) == (422, True)


def test_the_web_service_needs_neither_torch_nor_this_package(service):
    code = "import web_service, sys; print({'torch', 'lightning', 'cifar_lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr
