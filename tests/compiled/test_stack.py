import copy

import pytest
import torch
import torch.nn.functional as F

from cifar_lightning import DeepMLP
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.step import has_compiler


def networks(count=3, **arguments):
    return [DeepMLP(12, 3, "3x8", **arguments).double() for _ in range(count)]


def batch(*shape):
    return torch.randn(*shape, 12, dtype=torch.float64), torch.randint(0, 3, shape)


def optimizers_of(networks, optimizer, **arguments):
    return [optimizer(network.parameters(), lr=0.01 * (i + 1), **arguments) for i, network in enumerate(networks)]


OPTIMIZERS = [
    pytest.param(torch.optim.SGD, {}, id="SGD"),
    pytest.param(torch.optim.NAdam, {}, id="NAdam"),
    pytest.param(torch.optim.SGD, {"momentum": 0.9}, id="momentum"),  # which steps each by itself
]


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
@pytest.mark.parametrize("shape", [(16,), (3, 16)], ids=["shared batch", "batches of their own"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.filterwarnings("ignore")
def test_each_network_makes_its_own_steps(shape, normalization, optimizer, arguments):
    ours = networks(normalization=normalization, norm_input=normalization == "batch")
    theirs = copy.deepcopy(ours)
    our_optimizers, their_optimizers = (optimizers_of(nets, optimizer, **arguments) for nets in (ours, theirs))
    stack = Stack(ours, our_optimizers)
    for _ in range(3):
        inputs, targets = batch(*shape)
        losses, logits = stack.step(inputs, targets)
        for i, (their, their_optimizer) in enumerate(zip(theirs, their_optimizers, strict=True)):
            x, y = (inputs, targets) if len(shape) == 1 else (inputs[i], targets[i])
            their_optimizer.zero_grad()
            expected = their(x)
            loss = F.cross_entropy(expected, y)
            loss.backward()
            their_optimizer.step()
            torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(logits[i], expected.detach(), rtol=1e-8, atol=1e-8)
    for our, their in zip(ours, theirs, strict=True):
        for name, value in their.state_dict().items():  # running statistics too
            torch.testing.assert_close(our.state_dict()[name], value, rtol=1e-8, atol=1e-8)
    for our, their in zip(our_optimizers, their_optimizers, strict=True):  # with which torch could go on
        for ours_, theirs_ in zip(our.state.values(), their.state.values(), strict=True):
            for name, value in theirs_.items():
                torch.testing.assert_close(ours_[name], value, rtol=1e-6, atol=1e-8)


def test_optimizers_that_differ_in_more_than_rates_step_each_by_itself():
    ours = networks(2)
    theirs = copy.deepcopy(ours)
    betas = (0.9, 0.999), (0.8, 0.99)
    our_optimizers, their_optimizers = (
        [torch.optim.NAdam(net.parameters(), lr=0.01, betas=b) for net, b in zip(nets, betas, strict=True)]
        for nets in (ours, theirs)
    )
    stack = Stack(ours, our_optimizers)
    for _ in range(3):
        inputs, targets = batch(16)
        stack.step(inputs, targets)
        for their, optimizer in zip(theirs, their_optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(their(inputs), targets).backward()
            optimizer.step()
    for our, their in zip(ours, theirs, strict=True):
        for p, q in zip(our.parameters(), their.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["last", "input_and_all"])  # the first layer's input shared, and not
def test_dropout_draws_other_masks_for_each(position):
    twin = DeepMLP(12, 3, [64], dropout="alpha", dropout_p=0.5, dropout_position=position).double()
    twins = [twin, copy.deepcopy(twin)]
    _, logits = Stack(twins, optimizers_of(twins, torch.optim.SGD)).step(*batch(16))
    assert not torch.allclose(*logits)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_it_computes_the_same():
    first = networks()
    again, plain = copy.deepcopy(first), copy.deepcopy(first)
    stacks = [Stack(nets, optimizers_of(nets, torch.optim.NAdam), nets is not plain) for nets in (first, again, plain)]
    for shape in ((16,), (16,), (5,)):
        inputs = batch(*shape)
        results = [stacks[0].step(*inputs)]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        results += [stack.step(*inputs) for stack in stacks[1:]]
        for of_first, of_again, of_plain in zip(*results, strict=True):
            assert torch.equal(of_first, of_again)
            torch.testing.assert_close(of_first, of_plain, rtol=1e-8, atol=1e-10)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # the first one's code was found


@pytest.mark.parametrize("wrong", [[], [DeepMLP(12, 3, [8]), DeepMLP(12, 3, [9])]])
def test_networks_that_do_not_stack_are_refused(wrong):
    with pytest.raises(ValueError, match="don't stack: expected one or more, .*; received"):
        Stack(wrong, optimizers_of(wrong, torch.optim.SGD))
