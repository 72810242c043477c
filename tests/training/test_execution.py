import copy
import csv
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, ROOT, SMALL
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    OnExceptionCheckpoint,
)

from cifar_lightning import CIFAR10DataModule, LRFinder, MLPClassifier
from cifar_lightning.compiled.code_cache import CompileError
from cifar_lightning.compiled.step import CompiledStep
from cifar_lightning.training import choice, execution
from cifar_lightning.training.choice import choose_execution
from cifar_lightning.training.execution import Executor

BASE = [
    f"--config={ROOT}/configs/one_cycle.yaml",
    *SMALL,
    "--data.batch_size=16",  # 15 batches an epoch
    "--model.hidden_sizes=3x20",
    "--model.dropout_position=all",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=3",
]
#: Roundings grow ten-thousandfold in these 45 steps.
DOUBLE = ["--trainer.precision=64-true"]
EVERY_10 = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=10",
            "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=step{step}"]  # fmt: skip


pytestmark = [
    pytest.mark.usefixtures("uncompiled"),
    pytest.mark.skipif(DEVICE.type != "cpu", reason="of compiled steps on a CPU; test_graphed_training.py is of GPUs"),
]


def outcome(folder):
    """The last checkpoint, each checkpoint's name, and the rows of the log."""
    last = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    return last, sorted(path.name for path in folder.rglob("*.ckpt")), rows


def check_equal(ours, theirs):
    (ours, our_files, our_rows), (theirs, their_files, their_rows) = ours, theirs
    assert our_files == their_files
    assert ours["global_step"] == theirs["global_step"]
    assert ours["epoch"] == theirs["epoch"]
    for name, value in theirs["state_dict"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(ours["state_dict"][name], value), name
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    assert [row["step"] for row in our_rows] == [row["step"] for row in their_rows]
    assert our_rows == their_rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--trainer.max_steps=31"],
        ["--trainer.limit_train_batches=2"],
        ["--trainer.limit_train_batches=0.5"],
        ["--trainer.val_check_interval=4"],
        ["--trainer.val_check_interval=0.4"],
        ["--trainer.val_check_interval=10", "--trainer.check_val_every_n_epoch=null"],
        ["--trainer.log_every_n_steps=1"],
        ["--trainer.log_every_n_steps=50"],
        EVERY_10,
        ["--trainer.gradient_clip_val=0.01"],
        ["--trainer.gradient_clip_val=0.001", "--trainer.gradient_clip_algorithm=value"],
        ["--model.max_norm=0.5"],
        ["--model.l1=0.001", "--model.l2=0.01", "--trainer.gradient_clip_val=0.5"],
        ["--model.normalization=batch", "--model.optimizer=NAdam", "--model.schedule=Constant"],
        ["--model.optimizer=Adam", "--model.schedule=Exponential"],
        ["--model.schedule=Performance"],
        ["--model.optimizer=NAdam", "--model.schedule=OneCycle", "--model.schedule.cycle_momentum=true"],
        [
            *EVERY_10[:1],
            "--trainer.callbacks.every_n_train_steps=5",
            "--trainer.callbacks.monitor=val_loss",
            "--trainer.callbacks.save_top_k=-1",
            "--trainer.callbacks.filename={step}-{val_loss:.6f}",
        ],
        ["--model.schedule=PiecewiseConstant", "--model.schedule.epochs=[1]", "--model.schedule.factors=[1,0.1]"],
        ["--trainer.callbacks+=LRFinder", "--trainer.callbacks.num_steps=80", "--model.dropout=none"],
    ],
    ids=lambda flags: " ".join(flag.split("=", 1)[0].split(".")[-1] + "=" + flag.split("=", 1)[1] for flag in flags),
)
def test_several_steps_a_hook_are_as_many_hooks_of_one_step(run, tmp_path, flags):
    results = []
    for steps in (1, 7):
        root = tmp_path / str(steps)
        said = run("fit", *BASE, "--execution.compile=always", f"--execution.steps={steps}", *flags,
                   f"--trainer.default_root_dir={root}")  # fmt: skip
        assert f"Training steps: compiled{f', {steps} at once' * (steps > 1)}, 1 thread" in said
        results.append(outcome(root))
    check_equal(*results)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("known", "said"), [(False, True), (True, False)])
def test_a_wait_for_the_compiler_is_announced(run, monkeypatch, known, said):
    seconds = execution.SECONDS_TO_LOAD if known else 25.0
    monkeypatch.setattr(execution, "seconds_to_compile", lambda *args: seconds)
    printed = run("fit", *BASE, "--execution.compile=always", "--trainer.max_epochs=1")
    line = "Compiling the training step, about 25 s (once; cached for later runs)"
    assert (line in printed) == said


@pytest.mark.filterwarnings("ignore")
def test_flags_count_optimizer_steps(run, tmp_path):
    run("fit", *BASE, "--execution.compile=always", "--trainer.max_steps=31", *EVERY_10)
    _, files, rows = outcome(tmp_path)
    assert files == ["best.ckpt", "last.ckpt", "stepstep=10.ckpt", "stepstep=20.ckpt", "stepstep=30.ckpt"]
    assert [int(row["step"]) for row in rows if row["train_step_loss"]] == list(range(2, 31, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.flip=true", "--data.shift=2", "--model.mixup=0.3", "--model.label_smoothing=0.1"],
        ["--model.block=residual", "--model.normalization=batch", "--model.optimizer=AdamW"],
        ["--model.block=inverted_bottleneck", "--model.normalization=layer", "--model.optimizer=AdamW"],
    ],
    ids=["plain", "augmented", "residual", "bottleneck"],
)
def test_the_weights_are_those_of_the_plain_path(run, tmp_path, options):
    weights = {}
    for compile in ("never", "always"):
        flags = [*BASE, *DOUBLE, *options, f"--execution.compile={compile}"]
        run("fit", *flags, f"--trainer.default_root_dir={tmp_path / compile}")
        weights[compile] = outcome(tmp_path / compile)[0]["state_dict"]
    for name, value in weights["never"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(weights["always"][name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_is_that_of_the_plain_path(run, tmp_path):
    losses = {}
    for precision, compile in (("32-true", "always"), ("bf16-mixed", "always"), ("bf16-mixed", "never")):
        flags = [*BASE, f"--trainer.precision={precision}", "--model.lr=0.005", f"--execution.compile={compile}"]
        root = tmp_path / precision / compile
        said = run("fit", *flags, f"--trainer.default_root_dir={root}")
        assert ("Training steps: compiled, 50 at once" in said) == (compile == "always")
        checkpoint, _, rows = outcome(root)
        losses[precision, compile] = [float(row["val_loss"]) for row in rows if row["val_loss"]]
        assert checkpoint["state_dict"]["network.output.weight"].dtype == torch.float32
    full, compiled, plain = losses.values()
    assert compiled == pytest.approx(plain, rel=0.02)  # a rounding is 0.4 %
    assert compiled != pytest.approx(full, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_mid_epoch_resume_is_bitwise_equal_and_keeps_the_path(run, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    compiled = [*BASE, "--execution.compile=always", "--execution.steps=7"]
    run("fit", *compiled, *EVERY_10, f"--trainer.default_root_dir={whole}")
    middle = next(whole.rglob("stepstep=20*.ckpt"))
    # "auto" would train so few steps plainly.
    said = run("fit", *BASE, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={middle}")
    assert "Training steps: compiled, 7 at once" in said
    ours, _, _ = outcome(resumed)
    theirs, _, _ = outcome(whole)
    assert ours["execution"] == theirs["execution"] | {"reason": "as before"}
    for name, value in theirs["state_dict"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(ours["state_dict"][name], value), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["SGD", "NAdam"])
def test_momentum_that_a_schedule_moves_is_that_of_the_plain_path(run, tmp_path, optimizer):
    flags = [f"--model.optimizer={optimizer}", "--model.schedule=OneCycle", "--model.schedule.cycle_momentum=true",
             "--model.lr=0.002"]  # fmt: skip
    weights = {}
    for compile in ("never", "always"):
        run("fit", *BASE, *flags, f"--execution.compile={compile}", f"--trainer.default_root_dir={tmp_path / compile}")
        weights[compile] = outcome(tmp_path / compile)[0]["state_dict"]["network.output.weight"]
    torch.testing.assert_close(weights["always"], weights["never"], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_resumes_before_and_after_an_epochs_last_short_batch(run, tmp_path):
    flags = [*BASE, "--data.batch_size=17", "--execution.compile=always"]  # 14 full ones and one of 2
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1",
             "--trainer.callbacks.filename=step{step}", "--trainer.callbacks.every_n_train_steps=1"]  # fmt: skip
    run("fit", *flags, *every, f"--trainer.default_root_dir={tmp_path / 'whole'}")
    expected = outcome(tmp_path / "whole")[0]["state_dict"]
    for step in (14, 15):
        middle = next((tmp_path / "whole").rglob(f"stepstep={step}.ckpt"))
        run("fit", *flags, f"--ckpt_path={middle}", f"--trainer.default_root_dir={tmp_path / str(step)}")
        ours, _, _ = outcome(tmp_path / str(step))
        assert ours["global_step"] == 45
        for name, value in expected.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(ours["state_dict"][name], value), (step, name)


def test_a_second_fit_begins_anew():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20, batch_size=10)
    module = MLPClassifier(hidden_sizes=[4])
    module.executor = Executor("always")
    for _ in range(2):
        trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(module, data)
        assert trainer.global_step == 8
        images, _ = next(iter(data.train_dataloader()))  # a batch, and no list of them
        assert len(images) == 10
    copy.deepcopy(module)


def test_after_a_fit_whose_steps_were_compiled_loaders_and_sweeps_get_single_batches():
    data = CIFAR10DataModule(source="synthetic", synthetic_size=400, val_size=20, batch_size=10)
    module = MLPClassifier(hidden_sizes=[4], optimizer="SGD")
    module.executor = Executor("always")
    options = {"max_steps": 5, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    first = Trainer(**options)
    first.fit(module, data)
    for loader in (data.train_dataloader(), first.train_dataloader):
        images, labels = next(iter(loader))
        assert (len(images), len(labels)) == (10, 10)
    Trainer(**options, callbacks=[finder := LRFinder(num_steps=30, apply=False)]).fit(module, data)
    assert finder.sweep is not None
    assert module.executor.execution.compiled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"update_every_n_steps": 3}, {"update_starting_at_step": 4}], ids=str)
def test_averaged_weights_see_the_steps_that_they_ask_for(run, tmp_path, options):
    flags = [*BASE, *DOUBLE, "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
    flags += [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    weights = {}
    for compile in ("never", "always"):
        root = tmp_path / compile
        said = run("fit", *flags, f"--execution.compile={compile}", f"--trainer.default_root_dir={root}")
        weights[compile] = outcome(root)[0]["state_dict"]["network.output.weight"]
    assert "compiled, 50 at once, 1 thread" in said
    torch.testing.assert_close(weights["always"], weights["never"], rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_resume_that_can_not_keep_the_path_says_so(run, fail, tmp_path):
    run("fit", *BASE, "--execution.compile=always", "--trainer.max_steps=5", f"--trainer.default_root_dir={tmp_path}")
    last = f"--ckpt_path={next(tmp_path.rglob('last.ckpt'))}"
    message = fail("fit", *BASE, "--trainer.accumulate_grad_batches=2", "--cycle.resume=new", last)
    assert "Remove that, or pass --execution.compile never" in message
    assert "got accumulated gradients" in message
    said = run("fit", *BASE, "--cycle.resume=new", "--execution.compile=never", last)
    assert "Training steps: plain, 1 thread\n" in said


class WatchesGradients(Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


def choose(compile="always", module=None, seconds=lambda threads: 0.0, **flags):
    module = module or MLPClassifier(hidden_sizes=[4])
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=50_000, **flags)
    trainer.strategy.connect(module)
    trainer.strategy.optimizers = [torch.optim.SGD(module.parameters())]
    module.trainer = trainer
    return choose_execution(trainer, module, compile, 50, (4, 4), 32, seconds)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"accumulate_grad_batches": 2}, "accumulated gradients"),
        ({"devices": 2, "strategy": "ddp_spawn"}, "2 devices"),
        ({"precision": "bf16-true"}, "precision bf16-true"),
        ({"callbacks": [WatchesGradients()]}, "WatchesGradients, which follows each gradient"),
        ({"callbacks": [GradientAccumulationScheduler({4: 2})]}, "GradientAccumulationScheduler"),
        ({"callbacks": [BaseFinetuning()]}, "BaseFinetuning"),
    ],
)
def test_what_can_not_be_compiled_is_trained_plainly_or_refused(flags, reason):
    chosen = choose("auto", **flags)
    assert not chosen.compiled
    assert chosen.reason == reason
    assert str(chosen) == f"Training steps: plain, 1 thread ({reason})"
    with pytest.raises(ValueError, match="cannot compile the training step: got " + reason):
        choose("always", **flags)
    assert choose("never", **flags).reason == ""


@pytest.mark.parametrize("callback", [LearningRateMonitor(), OnExceptionCheckpoint(".")])
def test_callbacks_that_follow_each_batch_get_each_batch(callback):
    chosen = choose("always", callbacks=[callback])
    assert chosen.compiled
    assert chosen.steps == 1
    assert chosen.reason == f"{type(callback).__name__} follows each batch"


def test_a_subclass_with_steps_of_its_own_is_trained_plainly():
    class Own(MLPClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    module = Own(hidden_sizes=[4])
    module.executor = Executor("always")
    module.trainer = Trainer(accelerator="cpu", logger=False)
    with pytest.raises(ValueError, match="cannot compile the training step: got Own.training_step"):
        module.on_fit_start()


def test_frozen_parameters_are_trained_plainly():
    module = MLPClassifier(hidden_sizes=[4])
    module.network.output.requires_grad_(False)
    assert choose("auto", module).reason == "frozen parameters"


class OutputOnly(MLPClassifier):
    def configure_optimizers(self):
        return torch.optim.NAdam(self.network.output.parameters())


class Tied(MLPClassifier):
    def __init__(self, **network):
        super().__init__(**network)
        self.network.hidden[2].linear.weight = self.network.hidden[1].linear.weight


class TwoDtypes(MLPClassifier):
    def __init__(self, **network):
        super().__init__(**network)
        self.extra = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (OutputOnly, "an optimizer of 2 parameters, not the model's 8"),
        (Tied, "tied parameters, which several layers share"),
        (TwoDtypes, "tensors of several dtypes or devices: torch.float32 on cpu, torch.float64 on cpu"),
    ],
)
def test_a_network_that_does_not_suit_a_compiled_step_is_trained_plainly(capsys, monkeypatch, cls, reason):
    monkeypatch.setattr(execution, "seconds_to_compile", lambda recipe, layers: 0.0)
    monkeypatch.setattr(cls, "forward", lambda self, images: self.network(images.flatten(1).float()))
    module = cls(hidden_sizes=[4, 4, 4])
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20, batch_size=40)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    assert f"Training steps: plain, 1 thread ({reason})" in capsys.readouterr().out
    assert trainer.global_step == 2


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_parameters_with_hooks_are_trained_plainly(register):
    module = MLPClassifier(hidden_sizes=[4])
    getattr(module.network.output.weight, register)(lambda tensor: None)
    assert choose("auto", module).reason == "hooks of parameters"


def test_a_subclass_that_follows_each_batch_gets_each_batch():
    class Watching(MLPClassifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    assert choose("always", Watching(hidden_sizes=[4])).steps == 1


@pytest.mark.parametrize(("steps", "compiled"), [(None, True), (5000, True), (4999, False)])
def test_auto_compiles_only_what_is_long_enough(monkeypatch, steps, compiled):
    monkeypatch.setattr(choice, "count_optimizer_steps", lambda trainer: steps)
    chosen = choose("auto", seconds=lambda threads: 20.0)
    assert chosen.compiled == compiled
    assert chosen.reason == ("" if compiled else "compiling may take 20 s, more than 4,999 steps would save")


def test_on_a_torch_that_lacks_a_name_steps_are_plain_or_refused(monkeypatch):
    monkeypatch.setattr(choice, "missing_names", lambda: ["torch.compiler.load_compiled_function"])
    monkeypatch.setattr(choice, "count_optimizer_steps", lambda trainer: None)
    expected = f"torch {torch.__version__} without torch.compiler.load_compiled_function"
    assert choose("auto").reason == expected
    assert choose("never").reason == ""
    with pytest.raises(ValueError, match="cannot compile the training step: got torch .* without torch.compiler"):
        choose("always")


def test_on_a_torch_newer_than_tested_auto_trains_plainly(monkeypatch):
    monkeypatch.setattr(choice, "is_newer_than_tested", lambda: True)
    monkeypatch.setattr(choice, "count_optimizer_steps", lambda trainer: None)
    assert "compiled steps are untested with torch" in choose("auto").reason
    assert choose("always").compiled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", [None, Path("key.bin")])
def test_code_is_remembered_once_and_only_where_it_is_kept(monkeypatch, entry):
    remembered, asked = [], []
    monkeypatch.setattr(CompiledStep, "entry", entry)
    monkeypatch.setattr(execution, "remember", lambda *args: remembered.append(args))
    monkeypatch.setattr(execution, "seconds_to_compile", lambda recipe, layers: asked.append(recipe) or 0.0)
    data = CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20, batch_size=10)
    for batch_norm in (False, True):
        module = MLPClassifier(hidden_sizes=[4], normalization="batch" if batch_norm else "none")
        trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(module, data)
        assert module.executor.execution.compiled
    assert len(remembered) == (0 if entry is None else 2)
    if entry is not None:
        assert [kept for _, kept in remembered] == [entry] * 2
        (first, _), (second, _) = remembered
        assert first != second
        assert first in asked


def test_code_for_another_number_of_threads_is_not_known(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(choice, "choose_threads", lambda *args: 2)
    monkeypatch.setattr(choice, "count_optimizer_steps", lambda trainer: 1000)
    assert not choose("auto", seconds=lambda threads: {1: 2.0, 2: 20.0}[threads]).compiled
    assert choose("auto", seconds=lambda threads: {1: 20.0, 2: 2.0}[threads]).compiled


@pytest.mark.filterwarnings("ignore")
def test_where_compiling_fails_steps_are_plain_or_the_training_ends(run, fail, monkeypatch, tmp_path):
    def fail_to_compile(function, tensors, module, description):
        def call(*args):
            raise CompileError("no luck today\nand more")

        return call

    flags = [*BASE, *DOUBLE, "--trainer.max_steps=20"]
    run("fit", *flags, "--execution.compile=never", "--trainer.default_root_dir=plain")
    monkeypatch.setattr("cifar_lightning.compiled.step.compile_once", fail_to_compile)
    monkeypatch.setattr(execution, "seconds_to_compile", lambda recipe, layers: 0.0)
    said = run("fit", *flags, "--trainer.default_root_dir=auto")
    assert said.count("Training steps: plain, because torch could not compile them: no luck today\n") == 1
    ours, theirs = (outcome(tmp_path / name)[0]["state_dict"] for name in ("auto", "plain"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11)
    assert "no luck today" in fail("fit", *flags, "--execution.compile=always")


def test_unknown_choices_are_named(fail):
    assert "float32_matmul_precision" in fail("fit", *BASE, "--execution.float32_matmul_precision=tf32")
    with pytest.raises(ValueError, match="unknown float32_matmul_precision: .* highest, high, medium; got 'tf32'"):
        Executor(float32_matmul_precision="tf32")
    assert "steps must be at least 1, got 0" in fail("fit", *BASE, "--execution.steps=0")
    with pytest.raises(ValueError, match="unknown compile: expected one of auto, always, never; got 'on'"):
        Executor("on")
