"""An option that names a class keeps no arguments that were given for another one."""

import logging
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL

from cifar_lightning.cli.main import CLI
from cifar_lightning.optim.class_paths import optimizer_component, schedule_component

SELU = f"--config={ROOT}/configs/selu.yaml"


class Parsed(CLI):
    """A command line that is parsed and not run."""

    def instantiate_classes(self):
        self.subcommand = None


def optimizer(*flags):
    parsed = Parsed(["fit", *SMALL, *flags]).subconfig.model.optimizer
    return parsed.class_path.rpartition(".")[2], parsed.init_args.as_dict()


def test_another_optimizer_than_the_configs_has_its_own_defaults(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        name, arguments = optimizer(SELU, "--model.optimizer=AdamW")
    assert name == "AdamW"
    assert arguments.get("eps", 1e-8) == 1e-8
    assert "model.optimizer is no longer NAdam: its eps = 1e-07 is dropped" in caplog.text


def test_another_optimizer_than_the_default_has_its_own_defaults():
    assert optimizer("--model.optimizer=AdamW")[1].get("weight_decay", 0.01) == 0.01
    assert optimizer("--model.optimizer=AdamW", "--model.optimizer.weight_decay=0.0")[1]["weight_decay"] == 0
    assert optimizer(SELU, "--model.optimizer=AdamW")[1].get("weight_decay", 0.01) == 0.01


@pytest.mark.parametrize(
    ("flags", "eps"),
    [
        (["--model.optimizer=NAdam"], 1e-7),
        (["--model.optimizer=torch.optim.NAdam", "--model.optimizer.weight_decay=0.1"], 1e-7),
        (["--model.optimizer", "AdamW", "--model.optimizer.eps", "1e-7"], 1e-7),
        (["--model.optimizer", "AdamW", "--model.optimizer.init_args.eps=1e-6"], 1e-6),
        (["--model.optimizer={class_path: AdamW, init_args: {eps: 1e-7}}"], 1e-7),
        (["--model.optimizer={class_path: AdamW, init_args: {weight_decay: 0.1}}"], 1e-8),
        (["--config={model: {optimizer: {class_path: AdamW, init_args: {weight_decay: 0.1}}}}"], 1e-8),
        (["--config={model: {optimizer: AdamW}}", "--model.optimizer=NAdam"], 1e-8),
        (["--model.optimizer.eps=1e-5"], 1e-5),
    ],
)
def test_only_what_was_given_for_the_class_stays(flags, eps):
    assert optimizer(SELU, *flags)[1].get("eps", 1e-8) == eps


def test_the_training_has_the_classs_own_defaults(run):
    run("fit", SELU, *SMALL, "--model.hidden_sizes=1x8", "--trainer.max_epochs=1", "--model.optimizer=AdamW")
    text = next(Path().rglob("hparams.yaml")).read_text()
    assert "torch.optim.AdamW" in text
    assert "eps: 1.0e-08" in text
    assert "weight_decay: 0.01" in text  # NAdam, the option's default, has 0


def test_schedules():
    config = "--config={model: {schedule: {class_path: Cosine, init_args: {warmup: 0.3}}}}"
    parsed = Parsed(["fit", config, "--model.schedule=Cosine", "--model.schedule.final=0.1"]).subconfig.model.schedule
    assert (parsed.init_args.warmup, parsed.init_args.final) == (0.3, 0.1)
    config = "--config={model: {schedule: {class_path: Performance, init_args: {factor: 0.3}}}}"
    parsed = Parsed(["fit", config, "--model.schedule=Exponential"]).subconfig.model.schedule
    assert parsed.init_args.as_dict().get("factor", 0.1) == 0.1


def components(*flags):
    """Optimizer and schedule as a training with these flags stores them."""
    model = Parsed(["fit", *SMALL, *flags]).subconfig.model
    optimizer, schedule = (each.as_dict() for each in (model.optimizer, model.schedule))
    return optimizer_component(optimizer), schedule_component(schedule)


@pytest.mark.parametrize("how", ["", "=skip_default"])
@pytest.mark.parametrize(
    "flags",
    [
        ["--model.optimizer=AdamW"],
        ["--model.optimizer=MuonAdamW"],
        ["--model.optimizer=MuonAdamW", "--model.optimizer.momentum=0.9", "--model.optimizer.weight_decay=0.0"],
        ["--model.optimizer=SGD", "--model.optimizer.momentum=0.9"],
        [SELU],
        [SELU, "--model.optimizer=AdamW"],
        [SELU, "--model.optimizer=MuonAdamW", "--model.schedule=Exponential"],
        [SELU, "--model.schedule=OneCycle", "--model.schedule.pct_start=0.2"],
        ["--model.schedule=PiecewiseConstant"],
        ["--model.schedule=PiecewiseConstant", "--model.schedule.epochs=[2, 3]"],
        ["--config={model: {schedule: {class_path: PiecewiseConstant}}}"],
        ["--config={model: {schedule: {class_path: Performance, init_args: {factor: 0.3}}}}", "--model.schedule=Power"],
    ],
)
def test_the_printed_config_trains_as_the_flags_do(capfd, flags, how):
    expected = components(*flags)
    capfd.readouterr()
    with pytest.raises(SystemExit):
        Parsed(["fit", *SMALL, *flags, f"--print_config{how}"])
    Path("printed.yaml").write_text(capfd.readouterr().out)
    assert components("--config=printed.yaml") == expected


def test_the_printed_config_has_the_classs_own_defaults(capfd):
    with pytest.raises(SystemExit):
        Parsed(["fit", *SMALL, SELU, "--model.optimizer=MuonAdamW", "--print_config"])
    printed = yaml.safe_load(capfd.readouterr().out)["model"]["optimizer"]["init_args"]
    assert printed["weight_decay"] == 0.1
    assert printed["betas"] == [0.9, 0.99]
    assert printed["momentum"] == 0.95
