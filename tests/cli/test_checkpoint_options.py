import pytest

from cifar_lightning.cli import checkpoint_options as options

CHECKPOINT = {
    "hyper_parameters": {"lr": 0.1, "hidden_sizes": [4, 4], "schedule": {"init_args": {"max_lr": 0.5}}},
    "datamodule_hyper_parameters": {"batch_size": 32, "scaling": "feature", "data_dir": "a", "data_set": "CIFAR-10"},
    "callbacks": {"Pretrained": {"checkpoint": "x.ckpt", "layers": None, "reused": 2}},
}
NOTHING = {
    "trainer": {},
    "data": {"images": None},
    "evaluation": {"mc_samples": 0, "ensemble": None, "tta_flip": False, "tta_shift": 0, "calibrate": False},
    "pretrained": {"checkpoint": None},
}


def with_option(name, value):
    group, name = name.split(".")
    return NOTHING | {group: NOTHING[group] | {name: value}}


def test_what_is_not_given_is_taken_from_the_checkpoint():
    known = {
        "model": {"lr": 1, "hidden_sizes": 1, "schedule": 1},
        "data": {"batch_size": 1, "scaling": 1, "data_dir": 1, "images": 1},
    }
    stored = options.options_of(CHECKPOINT, known)
    assert stored["data"] == {
        "batch_size": 32,
        "scaling": "feature",
    }  # where it is found, and its name, are not options
    taken = options.without_given(stored, {"model": {"lr": 0.2}, "trainer": {"max_epochs": 1}})
    assert taken == {
        "model": {"hidden_sizes": [4, 4], "schedule": {"init_args": {"max_lr": 0.5}}},
        "data": stored["data"],
    }


@pytest.mark.parametrize(
    ("given", "subcommand", "refused"),
    [
        ({"model": {"lr": 0.2}}, "fit", "model.lr"),
        ({"model": {"lr": 0.2}}, "test", "model.lr"),
        ({"model": {"lr": 0.1, "hidden_sizes": (4, 4)}}, "fit", None),
        ({"model": {"cutmix": 1.0}}, "fit", "model.cutmix"),  # which is newer than the checkpoint
        ({"model": {"cutmix": 0.0}}, "fit", None),
        ({"data": {"batch_size": 8}}, "fit", "data.batch_size"),
        ({"data": {"batch_size": 8}}, "test", None),  # an evaluation may use other batches
        ({"data": {"scaling": "unit"}}, "test", "data.scaling"),
        ({"data": {"data_dir": "b"}}, "fit", None),
        ({"pretrained": {"checkpoint": "y.ckpt"}}, "fit", "pretrained.checkpoint"),
        ({"pretrained": {"checkpoint": "y.ckpt"}}, "test", None),  # refused for another reason
        ({"trainer": {"max_epochs": 9}}, "fit", None),
    ],
)
def test_contradictions(given, subcommand, refused):
    used = {"model": {}, "data": {}, "pretrained": {}} | given
    if refused is None:
        options.refuse_contradictions(given, used, CHECKPOINT, subcommand)
        return
    with pytest.raises(ValueError, match=f"--{refused} contradicts the checkpoint: expected .*; got"):
        options.refuse_contradictions(given, used, CHECKPOINT, subcommand)


@pytest.mark.parametrize("attribute", ["lr", "schedule.init_args.max_lr"])
@pytest.mark.parametrize(("same", "forgotten"), [(True, True), (False, False)])
def test_a_rate_that_the_finder_replaced_is_forgotten_if_it_is_given_as_it_was(attribute, same, forgotten):
    found = {"attribute": attribute, "given": 0.3, "found": 0.1}
    value = 0.3 if same else 0.4
    given = {"model": {"lr": value, "schedule": {"init_args": {"max_lr": value}}}}
    options.forget_what_a_finder_replaced(given, CHECKPOINT | {"callbacks": {"LRFinder": found}})
    assert (attribute.partition(".")[0] not in given["model"]) == forgotten


@pytest.mark.parametrize(
    ("option", "value", "acts_in"),
    [
        ("evaluation.mc_samples", 5, {"validate", "test", "predict"}),
        ("evaluation.ensemble", ["a.ckpt"], {"validate", "test", "predict"}),
        ("evaluation.calibrate", True, {"validate"}),
        ("data.images", ["x.png"], {"predict"}),
        ("pretrained.checkpoint", "x.ckpt", {"fit"}),
    ],
)
@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_options_act_or_are_refused(option, value, acts_in, subcommand):
    chosen = with_option(option, value)
    if subcommand in acts_in:
        options.refuse_what_can_not_act(chosen, chosen, subcommand)
        return
    with pytest.raises(ValueError, match=f"--{option} has no effect here: it works with .*, got {subcommand}"):
        options.refuse_what_can_not_act(chosen, chosen, subcommand)


@pytest.mark.parametrize(("other", "value"), [("ensemble", ["a.ckpt"]), ("tta_flip", True), ("tta_shift", 1)])
def test_a_prediction_has_one_way(other, value):
    both = NOTHING | {"evaluation": NOTHING["evaluation"] | {"mc_samples": 5, other: value}}
    message = f"predict takes only one of --evaluation.mc_samples and --evaluation.{other}, got both"
    with pytest.raises(ValueError, match=message):
        options.refuse_what_can_not_act(both, both, "predict")
    options.refuse_what_can_not_act(both, both, "test")


def test_members_of_an_ensemble_are_files_and_not_the_checkpoint_itself(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.ckpt").touch()
    found = options.find_members([str(tmp_path / "*.ckpt")], str(tmp_path / "b.ckpt"))
    assert found == [str(tmp_path / "a.ckpt"), str(tmp_path / "c.ckpt")]
    assert options.find_members([str(tmp_path / "a.ckpt")], str(tmp_path / "a.ckpt")) is None
    with pytest.raises(ValueError, match=r"expected the file of an ensemble member, got 'd.ckpt'"):
        options.find_members(["d.ckpt"], "")
