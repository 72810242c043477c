"""The Hub's parquet files of CIFAR-10, here of two images a class, and files that only look like them."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from cifar_lightning.data import cifar10_parquet
from cifar_lightning.data.availability import load_images, make_available

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(cifar10_parquet, "PER_CLASS", {"train": 2, "test": 1})


def png(value, size=(32, 32), form="PNG"):
    content = io.BytesIO()
    Image.new("RGB", size, (value, 0, 7)).save(content, form)
    return {"bytes": content.getvalue(), "path": None}


def write(folder, spoil=None, columns=("img", "label")):
    from pyarrow import parquet

    Path(folder).mkdir(parents=True, exist_ok=True)
    for part, per_class in cifar10_parquet.PER_CLASS.items():
        rows = [{columns[0]: png(i), columns[1]: i % 10} for i in range(10 * per_class)]
        if spoil is not None:
            spoil(rows)
        parquet.write_table(pyarrow.Table.from_pylist(rows), Path(folder, f"{part}-00000-of-00001.parquet"))


def test_a_file_with_too_many_rows_is_refused_before_one_is_read(monkeypatch):
    write("mine", lambda rows: rows.append(rows[0]))
    monkeypatch.setattr(cifar10_parquet, "_decode", None)
    with pytest.raises(ValueError, match="21 rows, in the place of 20"):
        load_images("cifar10", "mine", 1)


@pytest.mark.parametrize("place", ["mine", "mine/plain_text"])
def test_the_files_are_found_read_and_cached(place, monkeypatch):
    write(place)
    for source in ("cifar10", "cifar10_or_synthetic"):
        make_available(source, "mine", download=False)
    images = load_images("cifar10", "mine", 1)
    assert images.name == "CIFAR-10"
    assert images.train_images.shape == (20, 3, 32, 32)
    assert images.train_images[:, 0, 5, 5].tolist() == list(range(20))
    assert images.test_labels.tolist() == list(range(10))
    monkeypatch.setattr(cifar10_parquet, "_read", None)
    assert len(load_images("cifar10", "mine", 1).train_labels) == 20


def change(**values):
    return lambda rows: rows[3].update(values)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change(label=10), "wrong row 3 in .*a label from 0 to 9, got .* and 10"),
        (change(label=-1), "wrong row 3"),
        (change(label=None), "and None"),
        (change(img=png(0, (31, 32))), r"got \(31, 32\)"),
        (change(img=png(0, form="JPEG")), "expected a PNG"),
        (change(img={"bytes": b"text", "path": None}), "expected a PNG"),
        (change(img=None), "wrong row 3"),
        (change(label=4), r"expected 2 images of each of 10 classes, got 20 rows with class counts \[2, 2, 2, 1, 3"),
        (lambda rows: rows.pop(), "got 19 rows"),
        (lambda rows: rows.append(rows[0]), "got 21 rows"),
    ],
)
def test_rows_that_are_not_cifar_10(spoil, said):
    write("mine", spoil)
    with pytest.raises(ValueError, match=said):
        load_images("cifar10", "mine", 1)


def test_other_columns():
    write("mine", columns=("image", "fine_label"))
    with pytest.raises(ValueError, match="with the columns img and label, got the columns image, fine_label"):
        load_images("cifar10", "mine", 1)


def test_no_parquet_at_all():
    write("mine")
    Path("mine/train-00000-of-00001.parquet").write_bytes(b"text")
    with pytest.raises(ValueError, match="train-00000-of-00001.parquet: expected a parquet file"):
        load_images("cifar10", "mine", 1)


def test_the_missing_extra_is_named(monkeypatch):
    write("mine")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'no pyarrow.*pip install "cifar_lightning\[parquet\]"'):
        load_images("cifar10", "mine", 1)
