from pathlib import Path

import pytest

from cifar_lightning.cli.arguments import CommandLine


@pytest.mark.parametrize(
    ("arguments", "configs", "whole"),
    [
        (["fit", "--x", "1"], [], ["fit", "--x", "1"]),
        (["fit", "--x=1", "-c", "a", "--config=b"], ["a", "b"], ["fit", "--config=a", "--config=b", "--x=1"]),
        (["--config", "g", "fit", "-c", "h"], ["g", "h"], ["--config=g", "fit", "--config=h"]),
        (["--config", "fit", "fit", "--x", "1"], ["fit"], ["--config=fit", "fit", "--x", "1"]),
        (["--help"], [], ["--help"]),
        ([], [], []),
    ],
)
def test_configs_come_before_flags_and_after_what_precedes_the_subcommand(arguments, configs, whole):
    for config in configs:
        Path(config).touch()
    line = CommandLine(arguments, ["fit", "test"])
    assert line.configs == configs
    assert line.arguments == whole


def test_what_an_evaluation_is_given_has_no_config():
    for config in "gh":
        Path(config).touch()
    assert CommandLine(["-c", "g", "test", "--x=1", "-c", "h"], ["fit", "test"]).without_configs == ["test", "--x=1"]


@pytest.mark.parametrize("words", [["--config"], ["-c"], ["--config="]])
def test_a_config_without_a_value_is_refused(words):
    with pytest.raises(ValueError, match="needs a value: expected a YAML file, got none"):
        CommandLine(["fit", "--x", *words], ["fit", "test"])
