import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import DeepMLP
from cifar_lightning.compiled.inductor_layers import ELU, SELU, Linear, SharedInputLinear, with_faster_layers


@pytest.mark.parametrize(
    ("activation", "reference"), [(ELU(), F.elu), (ELU(0.5), lambda x: F.elu(x, 0.5)), (SELU(), F.selu)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 4e-16)])
def test_activations_are_torchs_to_a_rounding_of_one(activation, reference, dtype, tolerance):
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e4, 1e-8, -1e-8, 1e4])]).to(dtype).requires_grad_()
    torch.testing.assert_close(activation(x), reference(x), rtol=tolerance, atol=2 * tolerance)
    ours, theirs = (torch.autograd.grad(y.sum(), x)[0] for y in (activation(x), reference(x)))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("cls", [Linear, SharedInputLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_are_torchs(cls, bias):
    layer, x = cls(5, 3, bias=bias).double(), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("activation", ["selu", "elu", "relu"])
def test_the_copy_shares_everything_but_its_layers(activation):
    network = DeepMLP(12, 3, "2x8", activation=activation, init="lecun_normal", normalization="batch")
    calls = []
    network.hidden[1].register_forward_hook(lambda module, args, output: calls.append(module))
    twin = with_faster_layers(network)
    x = torch.randn(16, 12)
    before = network.hidden[0].norm.running_mean.clone()
    torch.testing.assert_close(twin(x), network(x), rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
    assert all(ours is theirs for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True))
    assert not torch.equal(network.hidden[0].norm.running_mean, before)
    assert {type(module) for module in twin.modules()} >= {Linear, nn.BatchNorm1d}
    assert type(network.output) is nn.Linear  # as it was
    assert twin.state_dict().keys() == network.state_dict().keys()


def test_the_first_layer_may_be_of_another_class():
    twin = with_faster_layers(DeepMLP(12, 3, "2x8"), first=SharedInputLinear)
    assert [type(module) for module in twin.modules() if isinstance(module, nn.Linear)] == [
        SharedInputLinear,
        Linear,
        Linear,
    ]


def test_other_peoples_modules_are_left_alone():
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

    theirs = Theirs()
    assert with_faster_layers(nn.Sequential(theirs, nn.Linear(2, 2)))[0] is theirs
    assert type(theirs.linear) is nn.Linear
