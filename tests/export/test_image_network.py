import pytest
import torch
from small_networks import CLASSES, SMALL, make_images, make_network

from cifar_lightning import DeepMLP, ImageNetwork, MLPClassifier, mc_predict


def test_it_is_the_part_of_a_classifier_that_classifies():
    classifier = MLPClassifier(hidden_sizes=[8], dropout="alpha")
    network = ImageNetwork({"hidden_sizes": [8], "dropout": "alpha"})
    network.load_state_dict(classifier.state_dict())
    images = make_images(5, (3, 32, 32))
    classifier.eval()
    network.eval()
    assert torch.equal(network(images), classifier(images))
    assert torch.equal(network.predict_proba(images), classifier.predict_proba(images))


def test_standardization_and_temperature_are_inside():
    network, images = make_network(), make_images()
    x = (images.float() - 120) / network.standardize.std
    torch.testing.assert_close(network(images), network.network(x) / 1.7)


def test_its_layers_in_a_row_are_the_same_and_can_be_sampled():
    network, images = make_network(dropout="standard", dropout_p=0.5), make_images()
    assert torch.equal(network.as_sequential()(images), network(images))
    assert mc_predict(network.as_sequential(), images, samples=5, seed=0).std.max() > 0


@pytest.mark.parametrize(
    ("images", "received"),
    [
        (torch.zeros(2, 3, 4, 4), "torch.float32 of shape (2, 3, 4, 4)"),
        (torch.zeros(2, 3, 5, 4, dtype=torch.uint8), "torch.uint8 of shape (2, 3, 5, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "torch.uint8 of shape (3, 4, 4)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "torch.uint8 of shape (2, 4, 4, 3)"),
    ],
)
def test_wrong_images(images, received):
    with pytest.raises(ValueError, match=r"wrong images: expected uint8 of shape \(B, 3, 4, 4\)") as error:
        make_network()(images)
    assert str(error.value).endswith(f"got {received}")


@pytest.mark.parametrize(("classes", "shape"), [(CLASSES, (3, 32, 32)), (("cat",), (3, 4, 4))])
def test_images_or_classes_that_do_not_fit(classes, shape):
    with pytest.raises(ValueError, match="do not match the network: expected 48 values per image and 3 classes"):
        ImageNetwork(SMALL, classes, shape)


def test_its_options_make_it_again():
    network = make_network(activation="leaky_relu", activation_args={"negative_slope": 0.2})
    again = ImageNetwork(**network.options)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(make_images()), network(make_images()))


def test_a_networks_options_make_it_again():
    network = DeepMLP(hidden_sizes="2x8", dropout="alpha", dropout_p=0.3, norm_input=True, normalization="layer")
    again = DeepMLP(**network.options)
    assert str(again) == str(network)
    assert again.options == network.options
