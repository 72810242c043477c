import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE
from torch import nn

from cifar_lightning import CompiledStep, DeepMLP, MuonAdamW
from cifar_lightning.compiled.muon_update import MuonUpdate
from cifar_lightning.compiled.stack import Stack


def make(**options):
    """A network with two matrices of one shape among others, and its optimizer."""
    torch.manual_seed(0)
    network = DeepMLP(12, 3, [10, 8, 8, 8], activation="elu", normalization="batch").to(DEVICE)
    return network, MuonAdamW(
        network.parameters(), **{"lr": 0.02, "weight_decay": 0.2, "precision": "float32"} | options
    )


def train(network, optimizer, step=None, count=8):
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(count):
        inputs, targets = torch.randn(16, 12, generator=generator).to(DEVICE), (torch.arange(16) % 3).to(DEVICE)
        if step is None:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
        else:
            loss, _ = step(inputs, targets)
        losses.append(loss.tolist())
    return losses


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.8, "ns_steps": 3, "betas": (0.8, 0.95), "eps": 1e-6}, {"weight_decay": 0.0}], ids=str
)
def test_it_does_what_the_optimizer_itself_does(options):
    (ours, optimizer), (theirs, their_optimizer) = make(**options), make(**options)
    step = CompiledStep(ours, optimizer)
    assert step.updates_itself
    assert train(ours, optimizer, step) == pytest.approx(train(theirs, their_optimizer), rel=1e-4)
    step.close()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    for state, expected in zip(optimizer.state.values(), their_optimizer.state.values(), strict=True):
        assert state.keys() == expected.keys()
        assert state["step"] == expected["step"] == 8
        for name in state.keys() - {"step"}:
            torch.testing.assert_close(state[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_it_continues_from_the_optimizers_state_and_the_optimizer_from_its():
    (whole, optimizer), (parts, its_optimizer) = make(), make()
    expected = train(whole, optimizer, count=4) + train(whole, optimizer, count=4) + train(whole, optimizer, count=4)
    losses = train(parts, its_optimizer, count=4)
    step = CompiledStep(parts, its_optimizer)
    losses += train(parts, its_optimizer, step, count=4)
    step.close()
    losses += train(parts, its_optimizer, count=4)
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_in_float64_it_does_what_the_optimizer_does():
    (ours, optimizer), (theirs, their_optimizer) = make(), make()
    for network in (ours, theirs):
        network.double()
    inputs, targets = torch.randn(16, 12, dtype=torch.float64, device=DEVICE), (torch.arange(16) % 3).to(DEVICE)
    step = CompiledStep(ours, optimizer)
    for _ in range(3):
        step(inputs, targets)
        their_optimizer.zero_grad()
        F.cross_entropy(theirs(inputs), targets).backward()
        their_optimizer.step()
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_compiled_code_does_the_same(precision):
    (ours, optimizer), (theirs, their_optimizer) = make(precision=precision), make(precision=precision)
    step = CompiledStep(ours, optimizer)
    losses, expected = train(ours, optimizer, step), train(theirs, their_optimizer)
    assert step.is_compiled
    assert losses == pytest.approx(expected, rel=1e-4 if precision == "float32" else 0.02)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"])
def test_a_stack_does_what_each_optimizer_does(compiled):
    options = [{"lr": 0.02}, {"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.03}]
    ours, theirs = [make(**each) for each in options], [make(**each) for each in options]
    for each in (ours, theirs):
        train(*each[2], count=2)  # so that their steps differ
    networks, optimizers = zip(*ours, strict=True)
    stack = Stack(networks, optimizers, compiled)
    assert stack.updates_itself
    losses = torch.tensor(train(networks, optimizers, stack.step))
    stack.close()
    for index, (network, optimizer) in enumerate(theirs):
        assert losses[:, index].tolist() == pytest.approx(train(network, optimizer), rel=1e-4)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(networks[index].state_dict()[name], value, rtol=1e-3, atol=1e-5)
        for parameter, its in zip(networks[index].parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(
                dict(optimizers[index].state[parameter]), dict(optimizer.state[its]), rtol=1e-3, atol=1e-5
            )


@pytest.mark.usefixtures("uncompiled")
def test_a_stack_of_optimizers_with_other_momentum_lets_each_step_itself():
    networks, optimizers = zip(*(make(momentum=momentum) for momentum in (0.9, 0.95)), strict=True)
    assert not Stack(networks, optimizers).updates_itself


def _with_groups_of_his_own(network):
    return MuonAdamW([{"params": [p], "orthogonalize": p.ndim == 2} for p in network.parameters()])


def _with_a_vector_that_decays(network):
    hidden, output = network.linears()[0], network.linears()[-1]
    groups = [{"params": [hidden.weight], "orthogonalize": True}, {"params": [output.weight, output.bias]}]
    groups += [{"params": [hidden.bias], "weight_decay": 0.0}]
    return MuonAdamW([{"orthogonalize": False} | group for group in groups])


def _with_an_empty_group(network):
    return MuonAdamW([{"params": [], "orthogonalize": True}, {"params": network.parameters()}])


def _with_another_rate(network):
    optimizer = MuonAdamW(network.parameters())
    optimizer.param_groups[1]["lr"] = 0.5
    return optimizer


def _after_a_step_of_some(network):
    optimizer = MuonAdamW(network.parameters())
    network.output.weight.grad = torch.ones_like(network.output.weight)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "make_optimizer",
    [
        *(_with_groups_of_his_own, _with_a_vector_that_decays, _with_an_empty_group),
        *(_with_another_rate, _after_a_step_of_some),
    ],
)
def test_other_optimizers_step_themselves(make_optimizer):
    network = DeepMLP(12, 3, [8])
    optimizer = make_optimizer(network)
    assert not MuonUpdate.supports(optimizer)
    assert not CompiledStep(network, optimizer).updates_itself


@pytest.mark.parametrize("layers", [[], [nn.Linear(12, 12), nn.ReLU()]], ids=["one layer", "a hidden layer"])
def test_only_a_network_with_hidden_matrices_is_supported(layers):
    network = nn.Sequential(*layers, nn.Linear(12, 3))
    assert MuonUpdate.supports(MuonAdamW(network.parameters())) == bool(layers)


def test_a_loss_that_is_no_number_leaves_the_parameters_finite():
    network, optimizer = make()
    step = CompiledStep(network, optimizer)
    before = copy.deepcopy(network.state_dict())
    step(torch.full((16, 12), float("nan"), device=DEVICE), (torch.arange(16) % 3).to(DEVICE))
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    torch.testing.assert_close(network.output.weight, before["output.weight"])
