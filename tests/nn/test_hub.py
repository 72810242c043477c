"""Networks in folders of the Hub's form, without any network connection."""

import json
import sys

import pytest
import torch

from cifar_lightning import DeepMLP, ImageNetwork, load_network


@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_image_network():
    network = ImageNetwork({"in_features": 12, "num_classes": 2, "hidden_sizes": [4]}, ("a", "b"), (3, 2, 2))
    network.standardize.scaling_index.fill_(1)
    return network


NETWORKS = {
    DeepMLP: lambda: DeepMLP(12, 2, "2x4", normalization="batch", dropout="alpha"),
    ImageNetwork: make_image_network,
}
INPUTS = {DeepMLP: torch.rand(5, 12), ImageNetwork: torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8)}


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_network_comes_back_in_evaluation_mode(hub, cls, tmp_path):
    network = NETWORKS[cls]()
    network.save_pretrained(tmp_path / "net")
    assert network.training  # saving changes nothing
    loaded = cls.from_pretrained(tmp_path / "net")
    assert type(loaded) is cls
    assert not any(part.training for part in loaded.modules())
    assert torch.equal(loaded(INPUTS[cls]), network.eval()(INPUTS[cls]))
    assert json.loads((tmp_path / "net" / "config.json").read_text()) == json.loads(json.dumps(network.options))


def test_a_network_of_another_class(hub, tmp_path):
    make_image_network().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a network that DeepMLP has saved"):
        DeepMLP.from_pretrained(tmp_path)


def test_a_subclass_comes_back_as_one(hub, tmp_path):
    class Own(DeepMLP):
        pass

    Own(12, 2, [4]).save_pretrained(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own


def test_the_card_is_ours_or_a_general_one(hub, tmp_path):
    NETWORKS[DeepMLP]().save_pretrained(tmp_path / "general")
    NETWORKS[DeepMLP]().save_pretrained(tmp_path / "own", card="my card")
    assert "library_name: cifar_lightning" in (tmp_path / "general" / "README.md").read_text()
    assert (tmp_path / "own" / "README.md").read_text() == "my card"


def test_a_folder_loads_without_huggingface_hub(hub, tmp_path, monkeypatch):
    network = make_image_network()
    network.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    loaded = load_network(tmp_path)
    assert torch.equal(loaded(INPUTS[ImageNetwork]), network.eval()(INPUTS[ImageNetwork]))


def test_pushing_sends_the_files_that_saving_writes(hub, monkeypatch):
    from huggingface_hub import HfApi

    sent = {}

    def upload(self, repo_id, folder_path, **options):
        sent[repo_id] = {path.name: path.read_text() for path in folder_path.glob("*.[jm][sd]*")}
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert NETWORKS[DeepMLP]().push_to_hub("me/net", card="my card") == "the commit"
    assert sent["me/net"]["README.md"].endswith("my card")
    assert json.loads(sent["me/net"]["config.json"])["in_features"] == 12


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (NETWORKS[DeepMLP]().save_pretrained, DeepMLP.from_pretrained, NETWORKS[DeepMLP]().push_to_hub):
        with pytest.raises(ValueError, match=r"no huggingface_hub.*cifar_lightning\[hub\]"):
            use(str(tmp_path))
