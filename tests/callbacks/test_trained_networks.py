"""Members of an ensemble, teachers and pretrained networks are what their checkpoints say, or refused."""

import sys

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from cifar_lightning import CIFAR10DataModule, Distillation, MLPClassifier, Pretrained
from cifar_lightning.callbacks.distillation import Teacher
from cifar_lightning.callbacks.evaluation import EvaluationReport
from cifar_lightning.callbacks.trained_networks import load_trained
from cifar_lightning.callbacks.ways_to_predict import WaysToPredict

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SHAPES = ["disc", "square", "ring"]


class Inverted(MLPClassifier):
    """Sees negatives."""

    def forward(self, images):
        return super().forward(255 - images.float())


class WithOption(MLPClassifier):
    """Multiplies its logits by an option of its own."""

    def __init__(self, gain=1.0, **options):
        super().__init__(**options)
        self.gain = gain
        self.save_hyperparameters()

    def forward(self, images):
        return super().forward(images) * self.gain


MAKERS = {"ours": MLPClassifier, "inverted": Inverted, "with an option": lambda **kw: WithOption(gain=3.0, **kw)}


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(
        **{"max_epochs": 1, "enable_model_summary": False} | quiet | options, callbacks=list(callbacks) or None
    )


def data(**options):
    return CIFAR10DataModule(source="synthetic", synthetic_size=100, val_size=20, **options)


def train(path, make=MLPClassifier, **options):
    """Train a network for an epoch, in Python, and write its checkpoint."""
    seed_everything(1, verbose=False)
    module = make(hidden_sizes=[8], optimizer="SGD", num_classes=len(options.get("classes", range(10))))
    run = trainer()
    run.fit(module, data(**options))
    run.save_checkpoint(path)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The networks by name, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    return {name: train(folder / f"{name}.ckpt", make) for name, make in MAKERS.items()}, folder


@pytest.mark.parametrize("own", MAKERS)
@pytest.mark.parametrize("other", MAKERS)
def test_a_checkpoint_is_loaded_as_its_own_class(trained, own, other):
    networks, folder = trained
    path, expected = str(folder / f"{other}.ckpt"), networks[other].predict_proba(IMAGES)
    loaded, _ = load_trained(path, type(networks[own]))
    assert type(loaded) is type(networks[other])
    assert torch.equal(loaded.predict_proba(IMAGES), expected)
    ways, plain = WaysToPredict(ensemble=[path]), networks[own].predict_proba(IMAGES)
    ways.prepare(networks[own])
    assert torch.equal(ways.predict(networks[own], IMAGES, plain), torch.stack([plain, expected]).mean(0))


class Overheard(Distillation):
    """Keeps what the teachers say."""

    def on_train_start(self, trainer, pl_module):
        assert isinstance(pl_module.soft_labels.teacher, Teacher)
        self.said = pl_module.soft_labels.teacher(IMAGES)


@pytest.mark.parametrize("name", ["inverted", "with an option"])
def test_teachers_and_pretrained_networks_may_be_of_other_classes(trained, name):
    networks, folder = trained
    path = str(folder / f"{name}.ckpt")
    taught = Overheard([path])
    module = MLPClassifier(hidden_sizes=[8], optimizer="SGD")
    trainer(taught, Pretrained(path), limit_train_batches=0).fit(module, data())
    assert torch.equal(module.network.hidden[0].linear.weight, networks[name].network.hidden[0].linear.weight)
    trainer(taught).fit(MLPClassifier(hidden_sizes=[8], optimizer="SGD"), data())
    assert torch.equal(taught.said, networks[name].predict_proba(IMAGES))


def changed(trained, path, **entries):
    """A copy of the checkpoint of the inverted network, with other entries; None removes one."""
    checkpoint = torch.load(trained[1] / "inverted.ckpt", weights_only=True) | entries
    torch.save({name: value for name, value in checkpoint.items() if value is not None}, path)
    return str(path)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda path: EvaluationReport(ensemble=[path]), "test"),
        (lambda path: Distillation([path]), "fit"),
        (Pretrained, "fit"),
    ],
    ids=["member", "teacher", "pretrained"],
)
def test_a_class_that_is_not_imported_is_refused_and_not_imported(trained, tmp_path, monkeypatch, make, method):
    (tmp_path / "not_yet.py").write_text("from cifar_lightning import MLPClassifier as Net")
    monkeypatch.syspath_prepend(tmp_path)
    path = changed(trained, tmp_path / "a.ckpt", class_paths={"model": "not_yet.Net"})
    run, module = trainer(make(path)), MLPClassifier(hidden_sizes=[8], optimizer="SGD")
    with pytest.raises(ValueError, match=r"can't load .*a\.ckpt, .* imported already, got one of not_yet\.Net"):
        getattr(run, method)(module, data())
    assert "not_yet" not in sys.modules


def test_a_class_that_is_unknown_is_ours_for_ours_and_else_refused(trained, tmp_path):
    path = changed(trained, tmp_path / "a.ckpt", class_paths=None)  # as version 0.1.0 wrote it in Python
    assert type(load_trained(path, MLPClassifier)[0]) is MLPClassifier
    with pytest.raises(ValueError, match=r"the class of the network in .*a\.ckpt is unknown"):
        load_trained(path, Inverted)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"class_paths": {"model": "torch.nn.Linear"}}, "got one of torch.nn.Linear"),
        ({"class_paths": {"model": "os.system"}}, "got one of os.system"),
        ({"class_paths": {"model": 5}}, "got one of 5"),
        ({"class_paths": 5}, "is unknown"),
        ({"hyper_parameters": {"hidden_sizes": [9], "optimizer": "SGD"}}, "expected that of a .*Inverted, but"),
        ({"hyper_parameters": {"width": 9}}, "expected that of a .*Inverted, but"),
    ],
)
def test_checkpoints_from_anywhere_are_refused_in_one_line(trained, tmp_path, entries, message):
    path = changed(trained, tmp_path / "a.ckpt", **entries)
    with pytest.raises(ValueError, match=message) as caught:
        load_trained(path, Inverted)
    assert "\n" not in str(caught.value)


def test_classes_of_functions_and_programs_are_known_where_they_are_used(tmp_path):
    class Local(MLPClassifier):
        pass

    path = tmp_path / "a.ckpt"
    train(path, Local)
    assert type(load_trained(str(path), Local)[0]) is Local
    checkpoint = torch.load(path, weights_only=True) | {"class_paths": {"model": "__main__.Local"}}
    torch.save(checkpoint, path)
    assert type(load_trained(str(path), Local)[0]) is Local


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
@pytest.mark.parametrize("from_file", [None, True])
@pytest.mark.parametrize(
    ("classes", "message"),
    [(SHAPES[::-1], r"classes: expected \['disc', 'square', 'ring'\], got \['ring', "), (SHAPES[:2], "classes: exp")],
)
def test_members_have_the_same_classes_in_the_same_order(tmp_path, classes, message, from_file, method):
    own = train(tmp_path / "own.ckpt", classes=SHAPES)
    train(tmp_path / "other.ckpt", classes=classes)
    run = trainer(EvaluationReport(ensemble=[str(tmp_path / "other.ckpt")]), default_root_dir=tmp_path)
    module = MLPClassifier(hidden_sizes=[8], num_classes=3) if from_file else own
    with pytest.raises(ValueError, match=rf"other\.ckpt must have the network's {message}"):
        getattr(run, method)(module, data(classes=SHAPES), ckpt_path=from_file and tmp_path / "own.ckpt")


def test_members_of_unnamed_classes_have_as_many(trained):
    own, ways = MLPClassifier(hidden_sizes=[8], num_classes=3), WaysToPredict(ensemble=[str(trained[1] / "ours.ckpt")])
    ways.prepare(own)
    with pytest.raises(ValueError, match="must have the network's number of classes: expected 3, got 10"):
        ways.check_members(own)
