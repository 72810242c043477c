"""A wrong option or value is answered in one line, which says what is meant."""

import re
from pathlib import Path

import pytest
from conftest import SMALL

from cifar_lightning.cli.suggestions import NOT_NEEDED, SYNONYMS, suggest


def one_line(fail, *flags, subcommand="fit"):
    """The message of a wrong command line, which must be all that is printed."""
    message = fail(subcommand, *flags)
    assert len(message.splitlines()) == 1
    assert message.endswith(f"(see cifar-lightning {subcommand} --help)\n")
    assert "usage" not in message
    return message


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ("--epochs 5", "--trainer.max_epochs 5"),
        ("--epochs=5", "--trainer.max_epochs 5"),
        ("--max_epochs 3", "--trainer.max_epochs 3"),
        ("--max-epochs 3", "--trainer.max_epochs 3"),
        ("--lr 0.1", "--model.lr 0.1"),
        ("-lr 0.1", "--model.lr 0.1"),
        ("--learning_rate 0.1", "--model.lr 0.1"),
        ("--batch_size 64", "--data.batch_size 64"),
        ("--batch-size 64", "--data.batch_size 64"),
        ("-b 64", "--data.batch_size 64"),
        ("--gpus 1", "--trainer.accelerator gpu --trainer.devices 1"),
        ("--device cuda", "--trainer.accelerator gpu"),
        ("--device cuda:0", "--trainer.accelerator gpu"),
        ("--device cpu", "--trainer.accelerator cpu"),
        ("--seed 1", "--seed_everything 1"),
        ("--optimizer Adam", "--model.optimizer Adam"),
        ("--scheduler OneCycle", "--model.schedule OneCycle"),
        ("--resume X", "--ckpt_path X"),
        ("--checkpoint X", "--ckpt_path X"),
        ("--ckpt-path X", "--ckpt_path X"),
        ("--data_dir D", "--data.data_dir D"),
        ("--hidden_sizes 3x10", "--model.hidden_sizes 3x10"),
        ("--dropout 0.1", "--model.dropout alpha (or standard) --model.dropout_p 0.1"),
        ("--dropout alpha", "--model.dropout alpha"),
        ("--activation relu", "--model.activation relu"),
        ("--precision 16-mixed", "--trainer.precision 16-mixed"),
        ("--wd 0.1", "--model.optimizer.weight_decay 0.1"),
        ("--compile always", "--execution.compile always"),
        ("--patience 3", "--trainer.callbacks+=EarlyStopping"),
        ("--model.batch_size 3", "--data.batch_size 3"),
        ("--trainer.lr 3", "--model.lr 3"),
        ("--trainer.epochs 3", "--trainer.max_epochs 3"),
        ("--model.activaton relu", "--model.activation relu"),
        ("--trainer.max_epoch 3", "--trainer.max_epochs 3"),
        ("--modle.lr 1", "--model.lr 1"),
        ("--trainer.acclerator gpu", "--trainer.accelerator gpu"),
        # Abbreviations, which argparse would take.
        ("--conf x.yaml", "--config x.yaml"),
        ("--model.l 3", "--model.lr 3"),
        ("--trainer.max_ep 3", "--trainer.max_epochs 3"),
        ("--seed_every 3", "--seed_everything 3"),
    ],
)
def test_what_is_meant(fail, flags, meant):
    message = one_line(fail, *flags.split())
    name = flags.replace("=", " ").split()[0]
    assert message.startswith(f"error: {name} is not an option: did you mean {meant}")


@pytest.mark.parametrize("flag", ["--workers", "--num_workers", "--pin_memory"])
def test_what_is_not_needed(fail, flag):
    assert f"{flag} is not an option and not needed: all images are in memory" in one_line(fail, flag, "4")


def test_nothing_is_near(fail):
    assert one_line(fail, "--zzz", "3").startswith("error: --zzz is not an option (see")


def test_every_synonym_means_options_that_exist():
    options = ["trainer.callbacks+", "trainer.callbacks.monitor", "trainer.callbacks.patience"]
    from cifar_lightning.cli.main import CLI

    class Names(CLI):
        def parse_arguments(self, parser, args):
            options.extend(self._subcommand_parsers["fit"].options)
            raise SystemExit

    with pytest.raises(SystemExit):
        Names(["fit"])
    options += ["model.optimizer.momentum", "model.optimizer.weight_decay"]
    for meant in SYNONYMS.values():
        for word in meant.replace("=", " ").split():
            assert not word.startswith("--") or word[2:] in options
    leaves = {option.rpartition(".")[2] for option in options}
    assert not leaves & NOT_NEEDED.keys()
    assert not {name for name in SYNONYMS if f"--{name}" in options}


@pytest.mark.parametrize("name", ["max_epochs", "train_size", "norm_momentum"])
def test_an_option_without_its_group_needs_no_table(name):
    assert suggest(name, "1", [f"some.{name}", "other.thing"]) == f": did you mean --some.{name} 1?"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("epochs: 5", "a.yaml: epochs is not an option: did you mean trainer.max_epochs: 5?"),
        ("trainer: {epochs: 5}", "a.yaml: trainer.epochs is not an option: did you mean trainer.max_epochs: 5?"),
        ("model: {activaton: relu}", "a.yaml: model.activaton is not an option: did you mean model.activation: relu?"),
        ("modle: {lr: 1}", "a.yaml: modle is not an option"),
        ("modell: {lr: 1}", "a.yaml: modell is not an option: did you mean model?"),
        ("model: {optimizer: {clas_path: SGD}}", "unknown key of --model.optimizer: .*did you mean 'class_path'"),
        ("model: {optimizer: {class_path: SGD, momentum: 0.9}}", "unknown key of --model.optimizer: "),
        (
            "model: {optimizer: {class_path: 3}}",
            "wrong --model.optimizer: expected a class_path and a mapping init_args",
        ),
        ("model: {schedule: {class_path: Cosine, init_args: 3}}", "wrong --model.schedule: "),
        ("model: {class_path: 3}", "wrong class: expected a class_path, and a mapping init_args"),
        ("data: {class_path: mine.Data, init_args: 3}", "wrong class: expected a class_path, and a mapping init_args"),
        ("trainer: {callbacks: [3]}", "--trainer.callbacks: expected a class's name or import path"),
        ("lr: 0.1", "a.yaml: lr is not an option: did you mean model.lr: 0.1?"),
        ("model: 1.5\ntrainer: {max_epochs: 1}", "a.yaml: model is a group of options: expected a mapping, got 1.5"),
        ("trainer:\nmodel: {lr: 1}", "a.yaml: trainer is a group of options: expected a mapping, got null"),
        ("[1, 2]", "a.yaml: expected options and their values in YAML, got .1, 2."),
        ("just words", "a.yaml: expected options and their values in YAML, got just words"),
        ("1: 2", "a.yaml: 1 is not an option"),
        ("model: {dropout_p: null}", "--model.dropout_p: expected a number; got null"),
        ("data: {batch_size: null}", "--data.batch_size: expected a whole number; got null"),
        ("model: {lr: [1, 2]}", "--model.lr: expected a number; got '.1, 2.'"),
        ("model: {hidden_sizes: {a: 1}}", "--model.hidden_sizes: expected a list or a string"),
        ("model: {hidden_sizes: null}", "hidden_sizes must be one or more positive integers"),
        ("model: {activation: null}", "unknown activation: expected one of relu"),
        ("model: {optimizer: null}", "unknown optimizer"),
        ("model: {schedule: null}", "unknown schedule"),
        ("trainer: {default_root_dir: 3}", "--trainer.default_root_dir: expected a string"),
        ("evaluation: {ensemble: a.ckpt}", "--evaluation.ensemble: expected a list or null; got 'a.ckpt'"),
        ("ckpt_path: [a]", "--ckpt_path: expected a string or null"),
        ("trainer: nowhere.yaml", "--trainer: expected a file of options, got 'nowhere.yaml'"),
        ("seed_everything: {a: 1}", "--seed_everything: expected true or false or a whole number"),
        ("model: {optimizer: {class_path: SGD, init_args: {momntum: 1}}}", "did you mean 'momentum'"),
        ("trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: a}}]}", "did you mean 'monitor'"),
        ("trainer: {callbacks: EarlyStoping}", "did you mean 'EarlyStopping'"),
    ],
)
def test_a_config(fail, config, message):
    Path("a.yaml").write_text(config)
    assert re.search(message, fail("fit", "--config=a.yaml"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("a: &a [*a]", "which contains itself"),
        ("model: &m {hidden_sizes: [1], init: *m}", "which contains itself"),
        ("[" * 100_000, "which is not: "),
        ("{a: " * 60 + "1" + "}" * 60, "which is nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "whose aliases stand for more than 100,000 values",
        ),
        ("{", "which is not: "),
        ("a: *x", "which is not: found undefined alias (line 1, column 4)"),
        ("!!python/object/apply:os.system [exit]", "which is not: could not determine a constructor"),
    ],
)
def test_yaml_that_does_harm(fail, config, message):
    Path("a.yaml").write_text(config)
    assert f"wrong config: expected YAML, got a.yaml, {message}" in one_line(fail, "--config=a.yaml")


def test_a_config_that_is_no_text_or_no_file(fail):
    Path("a.yaml").write_bytes(b"\xff\xfe\x00\x01")
    Path("folder").mkdir()
    assert "got a.yaml, which is not a text file" in one_line(fail, "--config=a.yaml")
    assert "got 'folder'" in one_line(fail, "--config=folder")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.activation rleu", "unknown --model.activation: expected one of relu, .*; got 'rleu' .*'relu'"),
        ("--model.schedule OneCyle", "--model.schedule: unknown schedule .*did you mean 'OneCycle'"),
        ("--model.optimizer SDG", "--model.optimizer: unknown optimizer .*did you mean 'SGD'"),
        ("--model.optimizer Muon", "Muon can't train this network"),
        ("--trainer.accelerator gqu", "unknown --trainer.accelerator: .*did you mean 'gpu'"),
        ("--trainer.profiler simpl", "did you mean 'simple'"),
        ("--trainer.logger CSVLoger", "unknown --trainer.logger: .*did you mean 'CSVLogger'"),
        ("--trainer.callbacks+=EarlyStoping", "unknown --trainer.callbacks: .*did you mean 'EarlyStopping'"),
        ("--model.optimizer SGD --model.optimizer.momntum 0.9", "unknown argument of SGD: .*did you mean 'momentum'"),
        ("--model.optimizer.epsilon 1", "unknown argument of NAdam: "),
        ("--model.optimizer.lr 1", "lr must be set as the model's lr"),
        ("--model.schedule Cosine --model.schedule.warmpu 3", "argument of Cosine: .*did you mean 'warmup'"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=a",
            r"argument of EarlyStopping \(--trainer.callbacks\): .*did you mean 'monitor'",
        ),
        ("--model.init lecun", "--model.init: expected he_normal, .* or orthogonal; got 'lecun' .*'lecun_normal'"),
        ("--trainer.precision 17", "--trainer.precision: expected 64, .* or null; got '17' .*'16'"),
        ("--trainer.max_epochs many", "--trainer.max_epochs: expected a whole number or null; got 'many'"),
        ("--model.lr abc", "--model.lr: expected a number; got 'abc'"),
        ("--model.lr=", "--model.lr: expected a number; got ''"),
        ("--model.lr", "--model.lr needs a value, got none"),
        ("--data.batch_size 3.5", "--data.batch_size: expected a whole number; got '3.5'"),
        ("--execution.compile maybe", "--execution.compile: expected auto, always or never; got 'maybe'"),
        ("--model.dropout_p null", "--model.dropout_p: expected a number; got null"),
        ("--model.hidden_sizes 999999999x2", "hidden_sizes may have at most 10,000 layers"),
        ("--model.hidden_sizes 100000x100000", "hidden_sizes may have at most 10,000 layers"),
        ("--model.hidden_sizes wide", "hidden_sizes must be one or more positive integers"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=a --trainer.callbacks.patience=b",
            "--trainer.callbacks.patience: expected a whole number; got 'b'",
        ),
        ("--trainer.callbacks+=EarlyStopping", "monitor is missing: it needs a value"),
        ("--model.optimizer.eps small", "--model.optimizer.eps: expected a number; got 'small'"),
        ("mnist", "a value without an option: expected --OPTION VALUE, got 'mnist' \\(see"),
        ("selu", r"got 'selu': did you mean --config selu\?"),
        ("selu.yaml", r"did you mean --config selu.yaml\?"),
        ("grids/optimizers", r"got 'grids/optimizers' \(see"),  # which trains nothing
        ("--trainer.max_epochs 3 5", "a value without an option: .*got '5'"),
        ("--model", "--model needs a value: expected the import path of a class"),
        ("--data=", "--data needs a value: expected the import path of a class"),
        ("--model.class_path", "--model.class_path needs a value: expected the import path of a class"),
        ("--config", "--config needs a value"),
        ("-c", "-c needs a value"),
    ],
)
def test_a_value(fail, flags, message):
    printed = one_line(fail, *flags.split())
    assert re.search(message, printed), printed


def test_too_many_weights(fail):
    message = fail("fit", *SMALL, "--model.hidden_sizes=1000x100000")
    assert "network too large: at most 2,147,483,648 weights" in message


@pytest.mark.parametrize("words", [["--model.lr=1", "fit"], ["--conf", "a.yaml", "fit"], ["-lr", "1", "fit"]])
def test_options_stand_after_the_command(capsys, words):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit):
        main(words)
    flag = words[0].partition("=")[0]
    assert capsys.readouterr().err.startswith(f"error: {flag} must come after fit")


def test_a_group_may_be_a_file_beside_the_config(run):
    Path("folder").mkdir()
    Path("folder/a.yaml").write_text("model: b.yaml\ntrainer: {max_epochs: 1}")
    Path("folder/b.yaml").write_text("{lr: 0.25, hidden_sizes: 1x8}")
    run("fit", "-c", "folder/a.yaml", *SMALL)
    (saved,) = Path("runs").rglob("hparams.yaml")
    assert "lr: 0.25" in saved.read_text()


@pytest.mark.parametrize("option", ["--model.optimizer.help=SGD", "--trainer.callbacks.help=EarlyStopping"])
def test_help_of_a_class(capsys, option):
    from cifar_lightning.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(["fit", option])
    assert stop.value.code == 0
    assert {"SGD": "momentum", "EarlyStopping": "patience"}[option.partition("=")[2]] in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.accelerator=CPU", "--trainer.strategy=auto", "--trainer.profiler=null", "--trainer.logger=false"],
        ["--trainer.strategy=SingleDeviceStrategy", "--trainer.strategy.device=cpu"],
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x", "--trainer.callbacks=null"],
        ["--trainer.logger={class_path: TensorBoardLogger, init_args: {save_dir: x}}", "--trainer.callbacks=[]"],
        ["--trainer.callbacks+=cifar_lightning.LRFinder", "--trainer.callbacks.init_args.attribute=lr"],
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.momentum=0.5"],
        ["--model.schedule={class_path: cifar_lightning.OneCycle, init_args: {div_factor: 5}}"],
        ["--config={trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: val_loss}}]}}"],
        ["--config={model.lr: 0.5, data: {classes: [ring, disc]}}", "--model.num_classes=2"],
        ["--model.activation=leaky_relu", "--model.activation_args.negative_slope=0.1", "--data.order_seed", "-1"],
        ["--model={lr: 0.5}", "--trainer={max_epochs: 1}"],
    ],
)
def test_what_is_right_is_taken(flags):
    from cifar_lightning.cli.main import CLI

    class Parsed(CLI):
        def instantiate_classes(self):
            self.subcommand = None

    assert Parsed(["fit", *SMALL, *flags]).subconfig.data.source == "synthetic"  # or it would have ended


def test_an_empty_config_says_nothing(run):
    Path("a.yaml").write_text("# nothing yet")
    assert "epoch   1" in run("fit", "-c", "a.yaml", *SMALL, "--model.hidden_sizes=1x8", "--trainer.max_epochs=1")


def test_dash_c_is_dash_dash_config(run):
    Path("a.yaml").write_text("model: {lr: 0.5, hidden_sizes: 1x8}\ntrainer: {max_epochs: 1}")
    run("fit", "-c", "a.yaml", *SMALL)
    assert list(Path("runs/a").iterdir())


def test_a_saved_config_with_its_nulls_is_a_config(run):
    run("fit", *SMALL, "--model.hidden_sizes=1x8", "--trainer.max_epochs=1")
    (saved,) = Path().rglob("config.yaml")
    assert "logger: null" in saved.read_text()
    run("fit", "--config", str(saved))
