"""find-lr, signals, plot-schedule and training-images: their options are their callbacks', and nothing is trained."""

from pathlib import Path

import pytest
import yaml
from conftest import SMALL

from cifar_lightning.cli import find_lr, plot_schedule, signals, training_images

QUICK = [*SMALL, "--model.hidden_sizes=2x8", "--data.batch_size=16", "--trainer.max_epochs=1"]


def only(pattern):
    (path,) = Path().rglob(pattern)
    return path


def is_untrained():
    return not list(Path().rglob("*.ckpt")) and not list(Path().rglob("learning_curves.png"))


def test_find_lr(capfd):
    own = ["--min_lr=1e-3", "--max_lr", "5", "--rule", "steep", "--num_steps=80"]
    find_lr.main(["--config", "one_cycle", *own, *QUICK, "--model.hidden_sizes=2x30"])
    rates = [float(line.split(",")[0]) for line in only("lr_finder.csv").read_text().splitlines()[1:]]
    assert len(rates) > 10
    assert min(rates) == pytest.approx(1e-3)
    assert max(rates) <= 5
    assert is_untrained()
    printed = capfd.readouterr().out
    assert "next: cifar-lightning fit, with the same config and --model.lr" in printed
    assert f"written to {only('lr_finder.png').parent}:\n  lr_finder.csv, lr_finder.png\n" in printed
    config = yaml.safe_load(only("config.yaml").read_text())
    assert config["model"]["dropout"] == "alpha"  # it was this config's network


def test_signals(capfd):
    signals.main(["--num_images", "50", "--config=selu", *QUICK])
    assert {line.split(",")[0] for line in only("signals.csv").read_text().splitlines()[1:]} == {"0"}
    assert is_untrained()
    assert f"written to {only('signals.png').parent}:\n  signals.csv, signals.png\n" in capfd.readouterr().out


def test_plot_schedule(capfd):
    plot_schedule.main([*QUICK, "-c", "one_cycle"])
    assert is_untrained()
    printed = capfd.readouterr().out
    assert f"written to {only('schedule.png').parent}:\n  schedule.png\n" in printed
    assert "15 steps: learning rate 0.005 at first" in printed


def test_training_images(capfd):
    training_images.main(["--num_images", "3", "--num_epochs=2", *QUICK, "--data.flip=true", "--model.mixup=1"])
    assert is_untrained()
    picture = only("training_images.png")
    assert f"written to {picture.parent}:\n  training_images.png\n" in capfd.readouterr().out


def test_the_callbacks_of_fit_still_do_it(run):
    run(
        "fit",
        *QUICK,
        "--trainer.callbacks+=LRFinder",
        "--trainer.callbacks.num_steps=60",
        "--trainer.callbacks.stop=true",
    )
    assert only("lr_finder.png")
    assert is_untrained()


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (find_lr, ["--rule", "vally"], "valley"),
        (find_lr, ["--stop", "false"], "--stop is not an option"),
        (find_lr, ["selu"], "got 'selu': did you mean --config selu?"),
        (find_lr, ["--max_lr=-1"], "got"),
        (find_lr, ["--config", "sellu"], "did you mean selu"),
        (find_lr, ["--model.lrr", "1"], "lrr"),
        (find_lr, ["--ckpt_path", "a.ckpt"], "find-lr inspects a new run: expected no --ckpt_path"),
        (training_images, ["--num_epochs", "0"], "num_epochs must be at least 1, got 0"),
        (signals, ["--num_images", "0"], "num_images must be at least 1, got 0"),
        (plot_schedule, ["--ckpt_path=a.ckpt"], "plot-schedule inspects a new run"),
    ],
)
def test_mistakes(capsys, module, args, message):
    with pytest.raises(SystemExit) as stop:
        module.main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())  # nothing is left behind


def test_a_sweep_that_suggests_nothing_leaves_its_picture(capsys):
    with pytest.raises(SystemExit) as stop:
        find_lr.main(["--min_lr=1e-9", "--max_lr=1e-8", "--num_steps=20", *QUICK])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "the loss never descended" in printed.err
    assert f"written to {only('lr_finder.png').parent}:\n  lr_finder.csv, lr_finder.png\n" in printed.out


@pytest.mark.parametrize(("module", "options"), [(find_lr, ["--max_lr", "--rule"]), (signals, ["--num_images"])])
def test_help_names_the_callback_s_arguments_and_those_of_fit(capsys, module, options):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    printed = capsys.readouterr().out
    for option in [*options, "All options of cifar-lightning fit"]:
        assert option in " ".join(printed.split())
    assert "--stop" not in printed


@pytest.mark.parametrize(("wrong", "meant"), [("--max_lrs", "--max_lr"), ("--rul", "--rule")])
def test_a_misspelt_option_of_the_commands_own_is_answered_by_the_nearest(capsys, wrong, meant):
    with pytest.raises(SystemExit) as stop:
        find_lr.main([wrong, "1", *QUICK])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: {wrong} is not an option: did you mean {meant}? (see cifar-lightning find-lr --help)\n"
