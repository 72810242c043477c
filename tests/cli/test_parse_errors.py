import pytest

from cifar_lightning.cli.parse_errors import explain

UNION = """Parser key "trainer.max_epochs":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: many"""
CLASSES = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Errors:
    - Expected a dot import path string: Foo
    - Expected a dot import path string: Foo
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: Foo"""


@pytest.mark.parametrize(
    ("message", "explained"),
    [
        (UNION, "--trainer.max_epochs: expected a whole number or null; got 'many'"),
        (CLASSES, "--trainer.callbacks: expected a class's name or import path or null; got 'Foo'"),
        (
            "Parser key \"model.lr\":\n Expected a <class 'float'>. Got value: ",
            "--model.lr: expected a number; got ''",
        ),
        (
            "Parser key \"model.init\":\n Expected a typing.Literal['he_normal', 'orthogonal']. Got value: he_norml",
            "--model.init: expected he_normal or orthogonal; got 'he_norml' (did you mean 'he_normal'?)",
        ),
        (
            "Parser key \"model.l1\": Expected a <class 'float'>. Got value: None",
            "--model.l1: expected a number; got null",
        ),
        ("argument -c/--config: expected one argument", "--config needs a value, got none"),
        (
            "the following arguments are required: monitor",
            "monitor is missing: it needs a value, since it has no default",
        ),
        (
            'Parser key "trainer":\n Unable to load config \'a.yaml\'\n - Parser key "trainer": Unable to load',
            "--trainer: expected a file of options, got 'a.yaml'",
        ),
        ("Subcommand 'fit' does not accept option 'trainer.x'", "trainer.x is not an option"),
        (
            "Parser key \"momentum\": Expected a <class 'float'>. Got value: x",
            "momentum: expected a number; got 'x'",
        ),
        (
            "Parser key \"trainer.callbacks\": Expected <class 'list'> Given value type: a Given value: b",
            "--trainer.callbacks: expected a list; got 'b'",
        ),
        ("what nobody\n  foresaw", "what nobody foresaw"),
    ],
)
def test_explanations(message, explained):
    options = ["trainer.max_epochs", "trainer.callbacks", "model.lr", "model.init", "model.l1"]
    assert explain(message, options=options) == explained


@pytest.mark.parametrize("flag", ["--trainer.callbacks.patience", "--trainer.callbacks.patience=abc"])
def test_an_argument_of_a_class_is_called_by_its_flag(flag):
    message = "Parser key \"patience\":\n  Expected a <class 'int'>. Got value: abc"
    explained = explain(message, ["--trainer.callbacks+=EarlyStopping", flag])
    assert explained == "--trainer.callbacks.patience: expected a whole number; got 'abc'"
