"""The same code on a CPU, where a direct call takes the place of a graph, and with TEST_DEVICE=cuda on a GPU."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import DeepMLP, Standardize
from cifar_lightning.compiled import cuda_graph
from cifar_lightning.compiled.cuda_graph import Graph, GraphedSteps
from cifar_lightning.compiled.stack import Stack
from cifar_lightning.compiled.step import CompiledStep
from cifar_lightning.compiled.updates import clip_by_norm
from cifar_lightning.nn.mlp import weight_penalty

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def make_twins(optimizer, device, arguments, **network):
    """Two equal networks in float64, each with its optimizer."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = DeepMLP(12, 3, "3x8", **network).to(device, torch.float64)
        made += [model, optimizer(model.parameters(), lr=0.05, **arguments)]
    return made


def make_batches(device, sizes):
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 12, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in sizes]
    return [(inputs.to(device), targets.to(device)) for inputs, targets in batches]


def move_rate(optimizer, number):
    optimizer.param_groups[0]["lr"] = 0.05 / (number + 1)


def train_plainly(model, optimizer, batches, clip=None, penalty=None):
    losses, every_logits = [], []
    for number, (inputs, targets) in enumerate(batches):
        move_rate(optimizer, number)
        optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets) + (penalty(model) if penalty else 0.0)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        model.constrain_()
        losses.append(loss.detach())
        every_logits.append(logits.detach())
    return losses, every_logits


def train_by_graphs(steps, optimizer, batches, hook):
    """`hook` steps at once, as in one of Lightning's hooks; losses of the last ones, and logits of all."""
    losses, every_logits = [], []
    for start in range(0, len(batches), hook):

        def with_rates(start=start):
            for number in range(start, min(start + hook, len(batches))):
                move_rate(optimizer, number)
                yield batches[number]

        for loss, logits in steps.run_all(with_rates()):
            last = loss
            every_logits.append(logits)
        losses.append(last)
    return losses, torch.cat(every_logits)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.NAdam, {}),
        (torch.optim.SGD, {}),
        (torch.optim.Adam, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
    ids=["NAdam", "SGD", "Adam", "momentum"],
)
@pytest.mark.parametrize("hook", [1, 7, 23])
@pytest.mark.parametrize(
    "network",
    [{}, {"normalization": "batch", "activation": "elu"}, {"max_norm": 0.5, "activation": "elu"}, {"l1": 0.01}],
    ids=["plain", "batch_norm", "max_norm", "l1"],
)
@pytest.mark.filterwarnings("ignore:this SELU network")
def test_graphs_train_as_plain_steps_do(device, optimizer, arguments, hook, network):
    ours, our_optimizer, plain, plain_optimizer = make_twins(optimizer, device, arguments, **network)
    batches = make_batches(device, [16] * 21 + [5, 16])  # a short one, and one after it
    penalty = partial(weight_penalty, l1=0.01, l2=0.0) if "l1" in network else None
    step = CompiledStep(ours, our_optimizer, partial(clip_by_norm, bound=1.0), penalty=penalty)
    steps = GraphedSteps(step, ours.constrain_, several=4)
    losses, logits = train_by_graphs(steps, our_optimizer, batches, hook)
    steps.close()
    plain_losses, plain_logits = train_plainly(plain, plain_optimizer, batches, 1.0, penalty)
    ends = [min(start + hook, len(batches)) - 1 for start in range(0, len(batches), hook)]
    # (What does not update itself is constrained by the training, after each step.)
    if step.updates_itself or "max_norm" not in network:
        torch.testing.assert_close(torch.stack(losses), torch.stack([plain_losses[end] for end in ends]), **CLOSE)
        torch.testing.assert_close(logits, torch.cat(plain_logits), **CLOSE)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, **CLOSE)


def test_dropout_draws_what_it_would_without_graphs(device):
    results = []
    for warm_up in (1, 1000):  # graphs from the second step on, and never
        model, optimizer, _, _ = make_twins(torch.optim.NAdam, device, {}, dropout="alpha", dropout_position="all")
        steps = GraphedSteps(CompiledStep(model, optimizer), several=4, warm_up=warm_up)
        batches = make_batches(device, [16] * 11)
        torch.manual_seed(3)
        results.append(train_by_graphs(steps, optimizer, batches, 11)[1])
        results.append(torch.rand(3, device=device))  # where the generator stands afterwards
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


def test_the_state_of_nadam_is_torchs(device):
    ours, our_optimizer, plain, plain_optimizer = make_twins(torch.optim.NAdam, device, {})
    batches = make_batches(device, [16] * 9)
    steps = GraphedSteps(CompiledStep(ours, our_optimizer), several=4)
    train_by_graphs(steps, our_optimizer, batches, 9)
    steps.close()
    train_plainly(plain, plain_optimizer, batches)
    plain_optimizer.load_state_dict(copy.deepcopy(our_optimizer.state_dict()))
    for model, optimizer in ((plain, plain_optimizer), (ours, our_optimizer)):
        steps = GraphedSteps(CompiledStep(model, optimizer), several=4)  # goes on, from what was saved and loaded too
        train_by_graphs(steps, optimizer, batches, 9)
        steps.close()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **CLOSE)


def test_standardization_of_bytes_is_part_of_the_step(device):
    ours, our_optimizer, plain, plain_optimizer = make_twins(torch.optim.NAdam, device, {})
    scale = Standardize((12,)).to(device, torch.float64)
    batches = [
        (torch.randint(256, (16, 12), dtype=torch.uint8).to(device), targets)
        for _, targets in make_batches(device, [16] * 9)
    ]
    steps = GraphedSteps(CompiledStep(nn.Sequential(scale, ours), our_optimizer), several=4)
    _, logits = train_by_graphs(steps, our_optimizer, batches, 9)
    _, plain_logits = train_plainly(plain, plain_optimizer, [(scale(inputs), targets) for inputs, targets in batches])
    torch.testing.assert_close(logits, torch.cat(plain_logits), **CLOSE)


@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.Adam])
@pytest.mark.parametrize("has_own_batches", [False, True])
def test_stacks_train_as_their_networks_do(device, optimizer, has_own_batches):
    networks, optimizers, plain, plain_optimizers = [], [], [], []
    for seed in (0, 1, 2):
        for models, its in ((networks, optimizers), (plain, plain_optimizers)):
            torch.manual_seed(seed)
            models.append(DeepMLP(12, 3, "3x8").to(device, torch.float64))
            its.append(optimizer(models[-1].parameters(), lr=0.01 * (seed + 1)))
    batches = make_batches(device, [16] * 13 + [5])
    if has_own_batches:
        batches = [(torch.stack([x, x + 1, x + 2]), torch.stack([y, y, y])) for x, y in batches]
    steps = GraphedSteps(Stack(networks, optimizers), several=4)
    logits = torch.cat([logits for _, logits in steps.run_all(batches)], -2)
    steps.close()
    for index, (model, its) in enumerate(zip(plain, plain_optimizers, strict=True)):
        own = [(x[index], y[index]) if has_own_batches else (x, y) for x, y in batches]
        lr = its.param_groups[0]["lr"]
        losses = []
        for inputs, targets in own:
            its.zero_grad()
            outputs = model(inputs)
            F.cross_entropy(outputs, targets).backward()
            its.step()
            losses.append(outputs.detach())
        assert its.param_groups[0]["lr"] == lr
        torch.testing.assert_close(logits[index], torch.cat(losses), **CLOSE)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(networks[index].state_dict()[name], value, **CLOSE)


def test_steps_of_several_and_of_one_are_captured_once_for_each_shape(device, monkeypatch):
    captured = []

    def count(function, inputs):
        captured.append(tuple(inputs[0].shape[:2]))
        return original(function, inputs)

    original = cuda_graph.capture
    monkeypatch.setattr(cuda_graph, "capture", count)
    model, optimizer, _, _ = make_twins(torch.optim.NAdam, device, {})
    steps = GraphedSteps(CompiledStep(model, optimizer), several=4, warm_up=3)
    for _ in range(3):
        train_by_graphs(steps, optimizer, make_batches(device, [16] * 10 + [5]), 11)
    assert captured == [(4, 16), (1, 16), (1, 5)]


def test_a_graph_returns_results_that_the_next_call_leaves_alone(device):
    graph = Graph(lambda x: (x * 2, x.sum()))
    first = graph(torch.ones(3, device=device))
    second = graph(torch.full((3,), 5.0, device=device))
    assert first[0].tolist() == [2, 2, 2]
    assert first[1] == 3
    assert second[0].tolist() == [10, 10, 10]
    assert second[1] == 15
