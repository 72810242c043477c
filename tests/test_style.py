from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cifar_lightning.style import COLOURS, DPI, PlainFormatter, log_axis, look, new_picture, plain, save, shorten, style


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.003, "0.003"),
        (2.5e-5, "2.5e-5"),
        (1200, "1,200"),
        (-0.5, "-0.5"),
        (1e12, "1e12"),
        (0.3 - 0.1, "0.2"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3e-5, 2e-5), (2.30258, 2.30262), (0, 140_700), (1e-12, 3e-12), (-1e9, 1e9)]
)
def test_ticks_are_exact_different_and_have_no_offset(low, high):
    axes = new_picture(4, 3).subplots()
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(PlainFormatter())
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in ticks]
    spacing = ticks[1] - ticks[0]
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx(ticks, rel=1e-6, abs=1e-6 * spacing)
    assert axes.yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize(("low", "high"), [(0.3, 5), (1e-20, 1e3), (1e-4, 2e-3), (0.01, 1)])
def test_a_logarithmic_axis_has_a_few_plain_ticks(low, high):
    figure = new_picture(4, 3)
    axes = figure.subplots()
    axes.plot([low, high])
    log_axis(axes)
    figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert 2 <= len(ticks) <= 10
    assert not any("$" in label.get_text() for label in axes.get_yticklabels() + axes.get_yticklabels(minor=True))


def test_28_lines_can_be_told_apart():
    assert len({tuple(look(index).values()) for index in range(28)}) == 28
    assert look(0)["color"] == COLOURS[0]


def luminance(colour):
    return sum(w * c**2.2 for w, c in zip((0.2126, 0.7152, 0.0722), matplotlib.colors.to_rgb(colour), strict=True))


def test_colours_stand_out_from_white():
    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) > 1.9, colour


@pytest.mark.parametrize(
    ("text", "most", "short"), [("abc", 3, "abc"), ("abcdefgh", 5, "ab…gh"), ("abcdefgh", 4, "a…gh")]
)
def test_shortened_texts_keep_both_ends(text, most, short):
    assert shorten(text, most) == short


@pytest.mark.parametrize("ours", [True, False])
def test_pictures_look_the_same_whatever_the_users_settings_are(ours):
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30.0}):
        before = dict(matplotlib.rcParams)
        with style():
            assert matplotlib.rcParams["axes.facecolor"] == "white"
            assert matplotlib.rcParams["font.size"] == 9
        assert dict(matplotlib.rcParams) == before


def test_a_file_is_written_whole_and_sharp(monkeypatch):
    save(new_picture(3, 2), Path("a.png"))
    with Image.open("a.png") as picture:
        assert picture.size == (3 * DPI, 2 * DPI)
    before = Path("a.png").read_bytes()

    def break_off(figure, file, **options):
        file.write(b"half of a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", break_off)
    with pytest.raises(OSError, match="no space"):
        save(new_picture(3, 2), Path("a.png"))
    assert Path("a.png").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_a_long_title_has_several_lines():
    title = new_picture(6, 3, "words " * 40).get_suptitle()
    assert title.split() == ["words"] * 40
    assert title.count("\n") > 1


def test_a_notebook_shows_a_picture_sharp_at_its_size():
    png, size = new_picture(3, 2)._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size == {"width": 300, "height": 200}
