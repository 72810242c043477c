"""Tests of Muon with AdamW."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_lightning import DeepMLP, MuonAdamW
from cifar_lightning.optim import muon
from cifar_lightning.optim.muon import find_directions, orthogonalize


def _network() -> DeepMLP:
    torch.manual_seed(1)
    return DeepMLP(in_features=30, num_classes=5, hidden_sizes=[20, 12, 12], activation="elu")


def _train(network: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x, y = torch.randn(16, 30, generator=generator), torch.randint(5, (16,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (3, 7, 11)], ids=str)
def test_orthogonalize_brings_singular_values_near_one_and_keeps_singular_vectors(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = orthogonalize(matrices, 5)
    u, values, vt = torch.linalg.svd(matrices, full_matrices=False)
    ours = u.mT @ result @ vt.mT
    reached = ours.diagonal(dim1=-2, dim2=-1)[values > 0.02 * matrices.norm(dim=(-2, -1), keepdim=True)[..., 0]]
    assert reached.min() > 0.65
    assert reached.max() < 1.25
    assert torch.allclose(ours, torch.diag_embed(ours.diagonal(dim1=-2, dim2=-1)), atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(6, 12), (30, 4), (2, 5, 20)], ids=str)
def test_steps_on_gram_matrices_are_newton_schulz_steps(shape: tuple[int, ...], steps: int) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    a, b, c = muon.NEWTON_SCHULZ
    expected = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    for _ in range(steps):
        gram = expected @ expected.mT
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    torch.testing.assert_close(orthogonalize(matrices, steps), expected)


def test_in_bfloat16_steps_on_gram_matrices_are_as_exact_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    u, v = (torch.linalg.qr(torch.randn(size, 128, generator=generator))[0] for size in (128, 512))
    matrix = u * torch.logspace(0, -4, 128) @ v.mT  # ill-conditioned, as gradients are

    def error() -> float:
        return (orthogonalize(matrix.bfloat16(), 5).float() - orthogonalize(matrix.double(), 5)).norm().item()

    on_gram_matrices = error()
    monkeypatch.setattr(muon, "STEPS_ON_GRAM", 1)
    assert on_gram_matrices < 1.2 * error()


def test_it_equals_the_muon_and_the_adamw_of_torch() -> None:
    ours, theirs = _network(), _network()
    _train(ours, MuonAdamW(ours.parameters(), lr=0.01, weight_decay=0.3))
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    muon = torch.optim.Muon(matrices[:-1], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": matrices[-1:], "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    _train(theirs, muon, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99)))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # (torch works on one matrix at a time, which rounds to bfloat16 at other places.)
        assert torch.allclose(mine, other, atol=1e-3 if mine.ndim == 2 else 1e-4), name


def test_large_matrices_are_updated_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in ((8, 9), (8, 9), (9, 4))]
    expected = find_directions(gradients, 5, "float32")
    monkeypatch.setattr(muon, "LARGE", 10)
    for ours, theirs in zip(find_directions(gradients, 5, "float32"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_update_has_the_size_of_one_of_adamw() -> None:
    weight = nn.Parameter(torch.zeros(64, 256))
    optimizer = MuonAdamW([{"params": [weight], "orthogonalize": True}], lr=1.0)
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    optimizer.step()
    # 64 singular values near 1 in 64 x 256 elements, times 0.2 sqrt(256).
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_hidden_matrices_are_made_orthogonal_and_vectors_do_not_decay() -> None:
    network = _network()
    hidden, output, vectors = MuonAdamW(network.parameters(), weight_decay=0.5).param_groups
    assert [tuple(p.shape) for p in hidden["params"]] == [(20, 30), (12, 20), (12, 12)]
    assert hidden["orthogonalize"]
    assert output["params"] == [network.output.weight]
    assert not output["orthogonalize"]
    assert all(p.ndim == 1 for p in vectors["params"])
    assert not vectors["orthogonalize"]
    assert [group["weight_decay"] for group in (hidden, output, vectors)] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("parameters", [[torch.zeros(3)], [torch.zeros(3, 4)]], ids=["a vector", "one matrix"])
def test_what_has_no_hidden_matrix_is_updated_by_adamw(parameters: list[Tensor]) -> None:
    (group,) = MuonAdamW(parameters).param_groups
    assert not group["orthogonalize"]


def test_groups_may_say_which_method_updates_them() -> None:
    first, second = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    groups = [{"params": [first], "orthogonalize": False}, {"params": second, "orthogonalize": True, "lr": 0.5}]
    optimizer = MuonAdamW(groups)
    assert [(group["orthogonalize"], group["lr"]) for group in optimizer.param_groups] == [(False, 1e-3), (True, 0.5)]


def test_the_last_matrix_of_all_groups_is_the_output_layers() -> None:
    first, second, output, vector = (nn.Parameter(torch.ones(*shape)) for shape in ((4, 5), (4, 4), (2, 4), (4,)))
    groups = MuonAdamW([{"params": [first, second], "lr": 0.5}, {"params": (p for p in (vector, output))}]).param_groups
    assert [(group["orthogonalize"], group["params"], group["lr"]) for group in groups] == [
        (True, [first, second], 0.5),
        (False, [output], 1e-3),
        (False, [vector], 1e-3),
    ]


def test_parameters_may_have_names() -> None:
    network = _network()
    named, plain = (MuonAdamW(each).param_groups for each in (network.named_parameters(), network.parameters()))
    assert [group["params"] for group in named] == [group["params"] for group in plain]
    assert named[1]["param_names"] == ["output.weight"]


def test_a_group_that_is_added_later_is_split_too() -> None:
    new = nn.Linear(3, 4)
    optimizer = MuonAdamW(_network().parameters(), weight_decay=0.5)
    optimizer.add_param_group({"params": new.parameters(), "lr": 0.2})
    expected = [(True, [new.weight], 0.2, 0.5), (False, [new.bias], 0.2, 0.0)]
    names = ("orthogonalize", "params", "lr", "weight_decay")
    assert [tuple(group[name] for name in names) for group in optimizer.param_groups[3:]] == expected
    new(torch.ones(1, 3)).sum().backward()
    before = new.weight.clone()
    optimizer.step()
    assert not torch.equal(new.weight, before)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 5)], ids=str)
def test_only_matrices_are_made_orthogonal(shape: tuple[int, ...]) -> None:
    groups = [{"params": [torch.zeros(2, 3), torch.zeros(shape)], "orthogonalize": True}]
    with pytest.raises(ValueError, match=r"expected parameters of two dimensions, .* got the shapes \[\(2, 3\), \("):
        MuonAdamW(groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    network = _network().to(dtype)
    optimizer = MuonAdamW(network.parameters(), eps=1e-4)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    assert {tensor.dtype for tensor in (*network.parameters(), *tensors)} == {dtype}
    assert all(tensor.isfinite().all() for tensor in (*network.parameters(), *tensors))


def test_training_continues_exactly_from_a_saved_state() -> None:
    whole, halves = _network(), _network()
    _train(whole, optimizer := MuonAdamW(whole.parameters()), steps=3)
    halves.load_state_dict(whole.state_dict())
    resumed = MuonAdamW(halves.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # (loading takes over the tensors)
    for network, each in ((whole, optimizer), (halves, resumed)):
        _train(network, each, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    network = _network()
    before = [parameter.clone() for parameter in network.parameters()]
    MuonAdamW(network.parameters()).step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_gradient_of_zero_gives_a_finite_update() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    MuonAdamW([{"params": [weight], "orthogonalize": True}], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((3, 4), 0.95))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float32, torch.float64])
def test_steps_are_counted_as_by_torch_whatever_the_default_dtype(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
        ours, theirs = MuonAdamW(parameters), torch.optim.AdamW(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones(2, 2)
        ours.step()
        theirs.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {state["step"].dtype for state in ours.state.values()} == {theirs.state[parameters[0]]["step"].dtype}


def test_step_returns_the_loss_of_a_closure() -> None:
    weight = nn.Parameter(torch.ones(3))

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert MuonAdamW([weight]).step(closure).item() == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got 0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"precision": "bfloat"}, "bfloat16"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MuonAdamW([torch.zeros(3)], **options)
