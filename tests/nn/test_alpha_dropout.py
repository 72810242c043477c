import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules.dropout import _DropoutNd

from cifar_lightning import AlphaDropout, DeepMLP, alpha_dropout
from cifar_lightning.nn.alpha_dropout import ALPHA_PRIME, affine_correction

pytestmark = pytest.mark.usefixtures("on_device")

probabilities = st.floats(0.01, 0.5)
seeds = st.integers(0, 2**31)


def assert_standard(y, sigmas=5.0):
    """Mean 0 and variance 1, to within the sampling error of `sigmas` standard deviations."""
    y = y.double()
    n = y.numel()
    fourth = ((y - y.mean()) ** 4).mean()
    assert abs(y.mean()) < sigmas * y.std() / n**0.5
    assert abs(y.var() - 1) < sigmas * ((fourth - 1).clamp(min=1) / n) ** 0.5


def test_alpha_prime_is_where_selu_saturates():
    assert pytest.approx(-1.7580993408473766, abs=1e-15) == ALPHA_PRIME
    assert torch.nn.functional.selu(torch.tensor(-1e6, dtype=torch.float64)).item() == pytest.approx(ALPHA_PRIME)


@given(p=probabilities)
def test_affine_correction_solves_the_moment_equations(p):
    # For x ~ (0, 1) and d ~ Bernoulli(q): E = (1-q)α', Var = q + α'²q(1-q); y = ax + b must have 0 and 1.
    a, b = affine_correction(p)
    q = 1 - p
    assert a * (1 - q) * ALPHA_PRIME + b == pytest.approx(0, abs=1e-12)
    assert a**2 * (q + ALPHA_PRIME**2 * q * (1 - q)) == pytest.approx(1)


@settings(max_examples=15, deadline=None)
@given(p=probabilities, seed=seeds)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_mean_and_variance_of_a_standard_normal(dtype, p, seed):
    torch.manual_seed(seed)
    assert_standard(alpha_dropout(torch.randn(400_000, dtype=dtype), p, training=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5])
def test_keeps_mean_and_variance_in_half_precision(dtype, p):
    # Rounding to bfloat16's 8 bits moves the constants a, b and α' by up to 2⁻⁹ of themselves.
    torch.manual_seed(0)
    y = alpha_dropout(torch.randn(1_000_000, dtype=dtype), p, training=True).double()
    assert abs(y.mean()) < 0.006
    assert abs(y.var() - 1) < 0.012


@settings(max_examples=10, deadline=None)
@given(p=probabilities, seed=seeds)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_at_the_rate_p(dtype, p, seed):
    torch.manual_seed(seed)
    n = 200_000
    y = alpha_dropout(torch.zeros(n, dtype=dtype), p, training=True)
    a, b = affine_correction(p)
    dropped = (y.double() - b).abs() > abs(a * ALPHA_PRIME) / 2
    assert abs(dropped.double().mean() - p) < 5 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_keeps_moments_through_fifty_selu_layers(p):
    torch.manual_seed(1)
    net = DeepMLP(400, 10, "50x400", dropout="alpha", dropout_p=p, dropout_position="all").train()
    x = torch.randn(1000, 400)
    with torch.no_grad():
        for layer in net.hidden:
            x = layer(x)
            assert abs(x.mean()) < 0.15
            assert abs(x.std() - 1) < 0.2


@given(p=probabilities, seed=seeds)
@settings(max_examples=20, deadline=None)
def test_equals_the_published_formula_on_its_own_mask(p, seed):
    torch.manual_seed(seed)
    x = torch.randn(50, 20, dtype=torch.float64)
    torch.manual_seed(seed)
    y = alpha_dropout(x, p, training=True)
    torch.manual_seed(seed)
    d = (torch.rand_like(x, dtype=torch.float32) >= p).double()  # 1 where x is kept
    a, b = affine_correction(p)
    torch.testing.assert_close(y, a * (x * d + ALPHA_PRIME * (1 - d)) + b)


def test_is_the_identity_in_eval_and_at_p_0():
    x = torch.randn(5, 3)
    assert AlphaDropout(0.5).eval()(x) is x
    assert AlphaDropout(0.0).train()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_refuses_what_is_no_probability(p):
    message = r"dropout probability must be in \[0, 1\), got "
    with pytest.raises(ValueError, match=message):
        AlphaDropout(p)
    with pytest.raises(ValueError, match=message):
        alpha_dropout(torch.randn(3), p, training=True)


def test_refuses_integers():
    with pytest.raises(ValueError, match=r"a real floating dtype, got torch\.int64"):
        alpha_dropout(torch.ones(3, dtype=torch.long), 0.5, training=True)


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes_pass_where_nothing_is_dropped(dtype):
    x = torch.ones(3, dtype=dtype)
    assert alpha_dropout(x) is x
    assert alpha_dropout(x, 0.0, training=True) is x
    assert AlphaDropout(0.5).eval()(x) is x
    assert AlphaDropout(0.0).train()(x) is x


def test_takes_torchs_arguments_by_name_and_place():
    x, ours, theirs = torch.randn(9), alpha_dropout, F.alpha_dropout
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert ours(input=x, p=0.5, training=False, inplace=False) is x
    assert AlphaDropout(p=0.5, inplace=False).eval()(input=x) is x
    torch.manual_seed(1)
    expected = ours(x, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(ours(input=x, p=0.3, training=True), expected)


def test_honours_inplace():
    x = torch.randn(1000)
    torch.manual_seed(3)
    expected = alpha_dropout(x, 0.3, training=True)
    torch.manual_seed(3)
    y = AlphaDropout(0.3, inplace=True)(x)
    assert y is x
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients(inplace):
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def dropped(x):
        torch.manual_seed(0)
        return alpha_dropout(x * 1, 0.4, training=True, inplace=inplace)

    assert torch.autograd.gradcheck(dropped, x)
    assert torch.autograd.gradgradcheck(dropped, x)


def test_keeps_one_byte_an_element_for_backward():
    kept = []
    x = torch.randn(1000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        alpha_dropout(x, 0.5, training=True)
    assert sum(t.numel() * t.element_size() for t in kept if t.numel() > 1) <= x.numel()


def test_is_recognized_as_dropout_by_its_type():
    layer = AlphaDropout(0.2)
    assert isinstance(layer, _DropoutNd)
    assert not isinstance(layer, torch.nn.Dropout)
    assert repr(layer) == "AlphaDropout(p=0.2, inplace=False)"


@pytest.mark.parametrize("batched", [True, False])
def test_vmap_draws_a_mask_for_each_sample(batched):
    x = torch.randn(7, 100)
    run = torch.vmap(
        lambda _, x: alpha_dropout(x, 0.5, training=True), in_dims=(0, 0 if batched else None), randomness="different"
    )
    y = run(torch.arange(7), x if batched else x[0])
    assert y.shape == (7, 100)
    a, b = affine_correction(0.5)
    dropped = (y - (a * ALPHA_PRIME + b)).abs() < 1e-6
    assert 0.3 < dropped.double().mean() < 0.7
    assert len({tuple(row.tolist()) for row in dropped}) == 7


def test_export():
    exported = torch.export.export(AlphaDropout(0.5).train(), (torch.randn(4, 3),))
    assert exported.module()(torch.randn(4, 3)).shape == (4, 3)


@pytest.mark.slow
def test_compile():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(AlphaDropout(0.3).train(), fullgraph=True)
        y = compiled(torch.randn(300, 1000, requires_grad=True))
        y.sum().backward()
    assert_standard(y.detach())
