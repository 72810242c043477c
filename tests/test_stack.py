import copy

import pytest
import torch
import torch.nn.functional as F

from cifar_lightning import DeepMLP
from cifar_lightning.compiled_step import has_compiler
from cifar_lightning.stack import Stack


def networks(count=3, **arguments):
    return [DeepMLP(12, 3, "3x8", **arguments).double() for _ in range(count)]


def batch(*shape):
    return torch.randn(*shape, 12, dtype=torch.float64), torch.randint(0, 3, shape)


@pytest.mark.parametrize("shape", [(16,), (3, 16)], ids=["shared batch", "batches of their own"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.filterwarnings("ignore")
def test_each_network_gets_its_own_gradients(shape, normalization):
    ours = networks(normalization=normalization)
    theirs = copy.deepcopy(ours)
    stack = Stack(ours)
    for _ in range(3):
        inputs, targets = batch(*shape)
        losses, logits = stack.compute_gradients(inputs, targets)
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            x, y = (inputs, targets) if len(shape) == 1 else (inputs[i], targets[i])
            their.zero_grad()
            expected = their(x)
            loss = F.cross_entropy(expected, y)
            loss.backward()
            torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(logits[i], expected.detach(), rtol=1e-12, atol=1e-12)
            for p, q in zip(our.parameters(), their.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
            for network in (our, their):
                torch.optim.SGD(network.parameters(), lr=0.1 * (i + 1)).step()
    for our, their in zip(ours, theirs, strict=True):
        for name, value in their.state_dict().items():  # running statistics too
            torch.testing.assert_close(our.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_dropout_draws_other_masks_for_each():
    twin = DeepMLP(12, 3, [64], dropout="alpha", dropout_p=0.5).double()
    _, logits = Stack([twin, copy.deepcopy(twin)]).compute_gradients(*batch(16))
    assert not torch.allclose(*logits)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_it_computes_the_same():
    ours = networks()
    theirs = copy.deepcopy(ours)
    stacks = Stack(ours, compiled=True), Stack(theirs)
    for shape in ((16,), (16,), (5,)):
        inputs = batch(*shape)
        for ours_, theirs_ in zip(*(stack.compute_gradients(*inputs) for stack in stacks), strict=True):
            torch.testing.assert_close(ours_, theirs_, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [[], [DeepMLP(12, 3, [8]), DeepMLP(12, 3, [9])]])
def test_networks_that_do_not_stack_are_refused(wrong):
    with pytest.raises(ValueError, match="don't stack: expected one or more, .*; received"):
        Stack(wrong)
