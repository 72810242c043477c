import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cifar_lightning import DeepMLP
from cifar_lightning.compiled.code_cache import CompileError
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.stack_template import StackedForward
from cifar_lightning.compiled.step import has_compiler
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value

pytestmark = pytest.mark.usefixtures("on_device")


def networks(count=3, **arguments):
    return [DeepMLP(12, 3, "3x8", **arguments).double() for _ in range(count)]


def batch(*shape):
    return torch.randn(*shape, 12, dtype=torch.float64), torch.randint(0, 3, shape)


def optimizers_of(networks, optimizer, **arguments):
    return [optimizer(network.parameters(), lr=0.01 * (i + 1), **arguments) for i, network in enumerate(networks)]


OPTIMIZERS = [
    pytest.param(torch.optim.SGD, {}, id="SGD"),
    pytest.param(torch.optim.NAdam, {}, id="NAdam"),
    pytest.param(torch.optim.AdamW, {}, id="AdamW"),
    pytest.param(torch.optim.SGD, {"momentum": 0.9}, id="momentum"),  # which steps each by itself
]


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
@pytest.mark.parametrize("shape", [(16,), (3, 16)], ids=["shared batch", "batches of their own"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.filterwarnings("ignore")
def test_each_network_makes_its_own_steps(shape, soft, normalization, optimizer, arguments):
    ours = networks(normalization=normalization, norm_input=normalization == "batch")
    theirs = copy.deepcopy(ours)
    our_optimizers, their_optimizers = (optimizers_of(nets, optimizer, **arguments) for nets in (ours, theirs))
    stack = Stack(ours, our_optimizers)
    for _ in range(3):
        inputs, targets = batch(*shape)
        if soft:
            targets = torch.rand(*shape, 3, dtype=torch.float64).softmax(-1)
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
    with pytest.raises(ValueError, match="cannot stack networks: expected one or more, .*, got"):
        Stack(wrong, optimizers_of(wrong, torch.optim.SGD))


@pytest.mark.parametrize("kind", ["alpha", "standard"])
@pytest.mark.filterwarnings("ignore")
def test_each_network_drops_with_its_own_probability(kind):
    nets = [DeepMLP(12, 3, [2000], dropout=kind, dropout_p=p, activation="relu").double() for p in (0.0, 0.2, 0.7)]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
    inputs, targets = batch(512)
    expected = nets[0](inputs)
    for logits in (
        StackedForward(nets)(inputs, is_shared=True),
        Stack(nets, optimizers_of(nets, torch.optim.SGD)).step(inputs, targets)[1],
    ):
        torch.testing.assert_close(logits[0], expected.detach() if not logits.requires_grad else expected)
        # The noise of dropout has variance p / (1 - p), up to what alpha dropout adds to it.
        noise = [(each - expected).square().mean().item() for each in logits[1:]]
        assert 0 < 1.2 * noise[0] < noise[1]


@pytest.mark.parametrize("clip", [clip_by_norm, clip_by_value])
def test_gradients_are_clipped_for_each_by_itself(clip):
    ours = networks(3)
    theirs = copy.deepcopy(ours)
    stack = Stack(ours, optimizers_of(ours, torch.optim.SGD), clip=partial(clip, bound=0.05))
    inputs, targets = batch(16)
    stack.step(inputs, targets)
    for their, optimizer in zip(theirs, optimizers_of(theirs, torch.optim.SGD), strict=True):
        F.cross_entropy(their(inputs), targets).backward()
        if clip is clip_by_norm:
            torch.nn.utils.clip_grad_norm_(their.parameters(), 0.05)
        else:
            torch.nn.utils.clip_grad_value_(their.parameters(), 0.05)
        optimizer.step()
    for our, their in zip(ours, theirs, strict=True):
        for p, q in zip(our.parameters(), their.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_each_has_its_own_penalty():
    ours = networks(3)
    theirs = copy.deepcopy(ours)
    penalties = [(0.0, 0.1), (0.01, 0.0), (0.0, 0.0)]
    stack = Stack(ours, optimizers_of(ours, torch.optim.SGD), penalties=penalties)
    inputs, targets = batch(16)
    losses, _ = stack.step(inputs, targets)
    for i, their in enumerate(theirs):
        their.l1, their.l2 = penalties[i]
        loss = F.cross_entropy(their(inputs), targets) + their.penalty()
        torch.testing.assert_close(losses[i], loss.detach())
        loss.backward()
        optimizers_of(theirs, torch.optim.SGD)[i].step()
    for our, their in zip(ours, theirs, strict=True):
        for p, q in zip(our.parameters(), their.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
@pytest.mark.filterwarnings("ignore")
def test_a_released_network_stays_as_it_is(optimizer, arguments):
    ours = networks(3, normalization="batch")
    theirs = copy.deepcopy(ours)
    stacks = [Stack(nets, optimizers_of(nets, optimizer, **arguments)) for nets in (ours, theirs)]
    inputs = batch(16)
    for stack in stacks:
        stack.step(*inputs)
    stacks[0].release(1)
    before = copy.deepcopy(ours[1].state_dict())
    for stack in stacks:
        stack.step(*inputs)
    assert all(torch.equal(value, before[name]) for name, value in ours[1].state_dict().items())
    for i in (0, 2):
        for name, value in theirs[i].state_dict().items():
            assert torch.equal(value, ours[i].state_dict()[name])


def test_a_closed_stack_leaves_networks_with_memory_of_their_own():
    nets = networks(2)
    stack = Stack(nets, optimizers_of(nets, torch.optim.NAdam))
    stack.step(*batch(16))
    before = copy.deepcopy([net.state_dict() for net in nets])
    stack.close()
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in net.parameters())


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.filterwarnings("ignore")
def test_the_plain_forward_pass_has_each_ones_gradients(normalization):
    ours = networks(normalization=normalization)
    theirs = copy.deepcopy(ours)
    inputs, targets = batch(3, 16)
    logits = StackedForward(ours)(inputs, is_shared=False)
    sum(F.cross_entropy(logits[i], targets[i]) for i in range(3)).backward()
    for i, their in enumerate(theirs):
        F.cross_entropy(their(inputs[i]), targets[i]).backward()
        for p, q in zip(ours[i].parameters(), their.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        for name, value in their.state_dict().items():
            torch.testing.assert_close(ours[i].state_dict()[name], value)


def test_a_stack_that_can_not_be_compiled_says_so_and_goes_on(monkeypatch):
    def refuse(function, tensors, module, description):
        def call(*args):
            raise CompileError("no compiler")

        return call

    monkeypatch.setattr("cifar_lightning.compiled.stack.compile_once", refuse)
    ours = networks(2)
    said = []
    stack = Stack(ours, optimizers_of(ours, torch.optim.SGD), True, on_failure=said.append)
    losses = [stack.step(*batch(16))[0] for _ in range(2)]
    assert [str(error) for error in said] == ["no compiler"]
    assert torch.stack(losses).isfinite().all()
    with pytest.raises(CompileError):
        Stack(ours, optimizers_of(ours, torch.optim.SGD), True).step(*batch(16))
