import copy
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE, ROOT, SMALL
from torch import nn

from cifar_lightning import DeepMLP
from cifar_lightning.cli.main import main
from cifar_lightning.compiled import code_cache
from cifar_lightning.compiled.step import CompiledStep, has_compiler
from cifar_lightning.compiled.threads import choose_threads
from cifar_lightning.compiled.updates import clip_by_norm, clip_by_value
from cifar_lightning.nn.mlp import weight_penalty

#: On raw pixels the losses are of the order of 100, and a rounding is a thousand times as much after a few steps.
STEPS = {"he_elu": 5}
#: One config for each graph that there is to compile.
CONFIGS = ["he_elu", "he_swish", "batch_norm", "selu", "alpha_dropout", "one_cycle", "random_split_batch_norm"]


def train(model, optimizer, batches, step=None):
    losses = []
    for inputs, targets in batches:
        if step:
            loss, _ = step(inputs, targets)
        else:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


def twins(optimizer, dtype=torch.float64, **arguments):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = DeepMLP(12, 3, "3x8").to(DEVICE, dtype)
        results += [model, optimizer(model.parameters(), lr=0.05, **arguments)]
    return results


def batches(count=20, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sizes = [16] * (count - 1) + [5]  # the last is a short one
    made = [(torch.randn(n, 12, generator=generator, dtype=dtype), torch.arange(n) % 3) for n in sizes]
    return [(inputs.to(DEVICE), targets.to(DEVICE)) for inputs, targets in made]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.NAdam, {}),
        (torch.optim.NAdam, {"eps": 1e-7, "betas": (0.8, 0.99), "momentum_decay": 0.01}),
        (torch.optim.NAdam, {"weight_decay": 0.1}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-7}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"weight_decay": 0.3}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adamax, {}),
    ],
)
def test_each_optimizer_does_what_torchs_own_does(optimizer, arguments):
    ours, our_optimizer, theirs, their_optimizer = twins(optimizer, **arguments)
    losses = train(ours, our_optimizer, batches(), CompiledStep(ours, our_optimizer))
    assert losses == pytest.approx(train(theirs, their_optimizer, batches()), rel=1e-10)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("is_on", [False, True], ids=["off around it", "on around it"])
def test_autocast_is_of_the_model_alone(is_on):
    ours, our_optimizer, theirs, their_optimizer = twins(torch.optim.AdamW, torch.float32)
    step = CompiledStep(ours, our_optimizer, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_on):  # all steps in one, as of one of Lightning's hooks
        losses = train(ours, our_optimizer, batches(dtype=torch.float32), step)
    expected = []
    for inputs, targets in batches(dtype=torch.float32):
        their_optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = theirs(inputs)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        their_optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=0.05)  # a rounding is 0.4 %
    model, optimizer, *_ = twins(torch.optim.AdamW, torch.float32)
    whole = train(model, optimizer, batches(dtype=torch.float32), CompiledStep(model, optimizer))
    assert losses != pytest.approx(whole, rel=1e-5)
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


def test_batches_of_another_kind_run_eagerly(monkeypatch):
    calls = []

    def count(function, tensors, module, description):
        return lambda *args: calls.append(args) or function(*args, *tensors)

    monkeypatch.setattr("cifar_lightning.compiled.step.compile_once", count)
    model, optimizer, _, _ = twins(torch.optim.SGD)
    step = CompiledStep(model, optimizer)
    inputs, targets = torch.randn(16, 12, dtype=torch.float64, device=DEVICE), torch.arange(16, device=DEVICE) % 3
    for batch in (inputs, inputs.T.contiguous().T, inputs.view(16, 3, 4), inputs):
        step(batch, targets)
    assert len(calls) == 2


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.AdamW])
def test_parameters_at_different_steps_are_torchs_own_business(optimizer):
    ours, our_optimizer, theirs, their_optimizer = twins(optimizer)
    for model, its in ((ours, our_optimizer), (theirs, their_optimizer)):
        model.hidden[0].requires_grad_(False)
        train(model, its, batches(5))
        model.hidden[0].requires_grad_(True)
    losses = train(ours, our_optimizer, batches(5), CompiledStep(ours, our_optimizer))
    assert losses == pytest.approx(train(theirs, their_optimizer, batches(5)), rel=1e-10)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.Adam, torch.optim.AdamW])
def test_the_state_is_torchs(optimizer):
    ours, our_optimizer, theirs, their_optimizer = twins(optimizer)
    train(ours, our_optimizer, batches(5), CompiledStep(ours, our_optimizer))
    their_optimizer.load_state_dict(copy.deepcopy(our_optimizer.state_dict()))
    theirs.load_state_dict(ours.state_dict())
    ours_again = CompiledStep(ours, our_optimizer)
    losses = train(ours, our_optimizer, batches(5), ours_again)
    assert losses == pytest.approx(train(theirs, their_optimizer, batches(5)), rel=1e-10)
    assert all(state["step"] == 10 for state in their_optimizer.state.values())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop]
)  # RMSprop's update is not in the graph
def test_the_optimizer_sees_clipped_gradients(optimizer):
    model, our_optimizer, plain, their_optimizer = twins(optimizer)
    step = CompiledStep(model, our_optimizer, partial(clip_by_norm, bound=0.1))
    for inputs, targets in batches(5):
        step(inputs, targets)
        their_optimizer.zero_grad()
        F.cross_entropy(plain(inputs), targets).backward()
        assert nn.utils.clip_grad_norm_(plain.parameters(), 0.1) > 0.1
        their_optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.AdamW, torch.optim.RMSprop])
def test_tensors_have_memory_of_their_own_again_after_the_end(optimizer):
    model, our_optimizer, _, _ = twins(optimizer)
    step = CompiledStep(model, our_optimizer)
    train(model, our_optimizer, batches(2), step)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    before = copy.deepcopy(model.state_dict())
    step.close()
    kept = [value for state in our_optimizer.state.values() for value in state.values() if value.ndim]
    tensors = [*model.parameters(), *kept]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, our_optimizer, batches(2))  # torch can go on


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.output.bias.requires_grad_(False), "frozen parameters"),
        (lambda model: model.output.float(), "got tensors of several dtypes or devices: .*float32.*float64"),
        (lambda model: setattr(model.hidden[1].linear.bias, "data", model.hidden[0].linear.bias.data), "share memory"),
        (
            lambda model: setattr(model, "more", nn.Linear(1, 1)),
            "an optimizer of 8 parameters, not the model's 10",
        ),
        (lambda model: setattr(model, "again", model.output), "tied parameters"),
    ],
)
def test_models_that_can_not_be_trained_so(change, message):
    model, optimizer, _, _ = twins(torch.optim.SGD)
    change(model)
    with pytest.raises(ValueError, match=message):
        CompiledStep(model, optimizer)


@pytest.mark.usefixtures("uncompiled")
def test_the_penalty_is_part_of_the_loss():
    model, optimizer, plain, plain_optimizer = twins(torch.optim.SGD)
    step = CompiledStep(model, optimizer, penalty=partial(weight_penalty, l1=0.01, l2=0.1))
    for inputs, targets in batches(5):
        loss, _ = step(inputs, targets)
        plain_optimizer.zero_grad()
        expected = F.cross_entropy(plain(inputs), targets) + weight_penalty(plain, 0.01, 0.1)
        expected.backward()
        plain_optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("clip", "torchs"), [(clip_by_norm, nn.utils.clip_grad_norm_), (clip_by_value, nn.utils.clip_grad_value_)]
)
@pytest.mark.parametrize("bound", [0.01, 1.0, 100.0])
def test_clips_as_torch_does(clip, torchs, bound):
    parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 3
    clipped = clip([parameter.grad.clone() for parameter in parameters], bound)
    torchs(parameters, bound)
    for ours, parameter in zip(clipped, parameters, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-12, atol=0)


def test_threads_are_one_or_all(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_threads(3072, 100, 32) == 1  # the tests' own
    torch.set_num_threads(2)
    assert choose_threads(64, 10, 4) in (1, 2)
    assert torch.get_num_threads() == 2  # as it was
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: pytest.fail("measured, though it was told"))
    assert choose_threads(3072, 100, 32) == 2


def test_a_compiler_is_looked_for_on_the_path(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_compiler()
    (tmp_path / "g++").touch(mode=0o755)
    assert has_compiler()


# --------------------------------------------------------------------------------------- with the compiler itself


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-10)])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_20_steps_are_those_of_the_plain_path(tmp_path, config, precision, tolerance):
    # (A first, a middle and a last layer, for the time that it takes to compile; dropout everywhere, for the masks.)
    flags = [
        f"--config={ROOT}/configs/{config}.yaml", *SMALL, "--data.synthetic_size=700", "--trainer.max_steps=20",
        f"--trainer.precision={precision}", "--model.hidden_sizes=3x50", "--trainer.log_every_n_steps=1",
        "--data.batch_size=20", "--model.dropout_position=all", "--trainer.logger=CSVLogger",
        "--trainer.limit_val_batches=0", "--trainer.callbacks=null", "--trainer.enable_checkpointing=false",
    ]  # fmt: skip
    losses, graphs = {}, {}
    for run, compile in {"never": "never", "always": "always", "always, again": "always"}.items():
        folder = tmp_path / run
        main(["fit", *flags, f"--execution.compile={compile}", f"--trainer.logger.save_dir={folder}"])
        graphs[run] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        lines = next(folder.rglob("metrics.csv")).read_text().splitlines()
        column = lines[0].split(",").index("train_step_loss")
        losses[run] = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert len(losses["always"]) == 20
    steps = STEPS.get(config, 20)
    assert losses["always"][:steps] == pytest.approx(losses["never"][:steps], rel=tolerance)
    assert losses["always, again"] == losses["always"]
    assert graphs["always, again"] == graphs["always"]  # the code was found
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiles_one_graph_and_then_calls_nothing_but_its_code(monkeypatch):
    monkeypatch.setattr(code_cache, "key_of", lambda step: None)  # as if it had never been compiled
    model, optimizer, plain, plain_optimizer = twins(torch.optim.NAdam)
    step = CompiledStep(model, optimizer)
    torch._dynamo.utils.counters.clear()
    epoch = batches(4)
    epoch[0][0].requires_grad_()  # which makes a difference to AOTAutograd
    losses = train(model, optimizer, epoch, step)  # the last, short batch too
    assert losses == pytest.approx(train(plain, plain_optimizer, epoch), rel=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for group in optimizer.param_groups:
        group["lr"] /= 2
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, epoch, step)
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_without_a_compiler_it_trains_plainly_and_says_so(tmp_path):
    flags = [*SMALL, "--trainer.max_steps=5", "--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    command = [sys.executable, "-m", "cifar_lightning", "fit", *flags, f"--trainer.default_root_dir={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Training steps: plain, " in done.stdout
    assert "(no C++ compiler)" in done.stdout
    done = subprocess.run(
        [*command, "--execution.compile=always"], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "error: cannot compile the training step: got" in done.stderr
    assert "got no C++ compiler" in done.stderr
