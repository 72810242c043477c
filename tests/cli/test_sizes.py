"""What no memory holds, or never ends, is refused by its size before anything is built; what merely is large is not."""

from pathlib import Path

import pytest
from conftest import SMALL

from cifar_lightning.__main__ import run as run_command
from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.errors import refuse_more

FIT = ["fit", *SMALL, "--trainer.max_epochs=1", "--execution.compile=never", "--model.hidden_sizes=2x8"]
OPTIONS = FIT[1:]
#: A grid of 50,000 points.
GRID = "{" + ", ".join(f"model.{name}: [{', '.join(f'0.{i:02}' for i in range(1, 11))}]" for name in ("lr", "l1", "l2"))
GRID += ", model.dropout_p: [0.1, 0.2, 0.3, 0.4, 0.5, 0.15, 0.25, 0.35, 0.45, 0.55], seed_everything: [1, 2, 3, 4, 5]}"

#: The same without a seed, which a study sets itself.
STUDIED = GRID.replace("seed_everything", "data.batch_size")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([*FIT, "--model.hidden_sizes=1000000000x1000000000"], "hidden_sizes may have at most 10,000 layers"),
        ([*FIT, "--model.hidden_sizes=[1000000000000]"], "network too large: at most 2,147,483,648 weights"),
        ([*FIT, "--data.batch_size=0"], "batch_size must be at least 1, got 0"),
        ([*FIT, "--data.eval_batch_size=-1"], "eval_batch_size must be at least 1, got -1"),
        ([*FIT, "--data.val_size=1000000000"], "val_size must be 1 to 299 images"),
        ([*FIT, "--data.shift=1000000000"], "shift must be less than"),
        ([*FIT, "--data.num_workers=10000"], "--data.num_workers is not an option"),
        ([*FIT, "--data.synthetic_size=1000000000000"], "too many synthetic images: expected at most 1,000,000"),
        (["find-lr", "--num_steps=1000000000000", *OPTIONS], "too many steps of a sweep"),
        (["plot-schedule", *OPTIONS, "--trainer.max_epochs=1000000000"], "too many steps to list"),
        (
            ["sweep", f"--vary={GRID}", *OPTIONS],
            "too many combinations of a grid: expected at most 10,000",
        ),
        (
            ["study", "one_cycle", f"--vary={STUDIED}", *OPTIONS],
            "too many combinations of a grid",
        ),
        (["study", "one_cycle", "--seeds", *map(str, range(20_000)), *OPTIONS], "too many runs of a study"),
        (["search", "--vary={model.lr: [0.1, 0.2]}", "--trials=1000000000", *OPTIONS], "too many trials of a search"),
    ],
)
def test_what_is_too_large_is_refused(capfd, command, said):
    with pytest.raises(SystemExit) as stop:
        run_command(command)
    assert stop.value.code == 2
    printed = capfd.readouterr().err
    assert printed.count("error:") == 1
    assert said in printed, printed
    assert not [path for path in Path().rglob("*") if path.suffix in (".ckpt", ".png")]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "flags",
    [
        ["--data.batch_size=1000000000000", "--data.eval_batch_size=1000000000000"],
        [
            "--trainer.max_steps=2",
            "--trainer.max_epochs=1000000000000",
            "--trainer.accumulate_grad_batches=9999999",
        ],
        ["--trainer.max_steps=2", "--trainer.max_epochs=1000000000000", "--model.schedule=OneCycle"],
    ],
)
def test_what_the_data_or_the_steps_bound_is_taken(run, flags):
    assert "epoch   1" in run(*FIT, *flags)


@pytest.mark.parametrize(("name", "most"), [("mc_samples", "100,000"), ("tta_shift", "100")])
@pytest.mark.parametrize("number", [-1, 10**12])
def test_an_evaluation_that_never_ends_is_refused(name, most, number):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to {most}, got {number:,}"):
        EvaluationReport(**{name: number})


def test_the_bound_itself_is_allowed():
    refuse_more(10, 10, "things")
    with pytest.raises(ValueError, match="too many things: expected at most 10, got 1,000"):
        refuse_more(10, 1000, "things")
