import pytest
import scipy.optimize
import torch
import torch.nn.functional as F

from cifar_lightning.nn.temperature import Temperature, fit_temperature


def overconfident(temperature, n=4000):
    """Logits that are right once they are divided by `temperature`, and labels."""
    torch.manual_seed(0)
    logits = torch.randn(n, 10) * 1.5
    return logits * temperature, torch.distributions.Categorical(logits=logits).sample()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_finds_the_temperature(temperature):
    logits, labels = overconfident(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    best = scipy.optimize.minimize_scalar(
        lambda t: F.cross_entropy(logits.double() / t, labels).item(), bounds=(0.05, 10), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=1e-3)


def test_is_the_identity_until_it_is_fitted_and_part_of_the_state():
    logits, labels = overconfident(3.0)
    module = Temperature()
    assert torch.equal(module(logits), logits)
    found = module.fit(logits, labels)
    loaded = Temperature()
    loaded.load_state_dict(module.state_dict())
    torch.testing.assert_close(loaded(logits), logits / found)
    assert F.cross_entropy(module(logits), labels) < F.cross_entropy(logits, labels)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_have_no_temperature(value):
    logits, labels = overconfident(1.0, n=20)
    logits[3, 4] = logits[7, 1] = value
    temperature = Temperature()
    with pytest.raises(ValueError, match="finite logits for all 20 images, got .* for 2 of them"):
        temperature.fit(logits, labels)
    assert temperature.value == 1
