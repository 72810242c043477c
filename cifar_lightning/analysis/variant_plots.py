"""A picture of training images as the network sees them, epoch by epoch."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from cifar_lightning.style import new_picture, save, style

#: Inches: side of an image, height of the line below it.
SIDE, LINE = 1.0, 0.25


@style()
def draw_variants(
    variants: Tensor,
    captions: Sequence[Sequence[str]],
    columns: Sequence[str],
    path: Path | None = None,
    title: str = "Training images",
) -> Figure:
    """Draw variants of images, one row per image.

    Args:
        variants: (N, V, C, H, W), 0 to 255.
        captions: Text below each variant, N rows of V.
        columns: Text above each column.
        path: File to write; None writes none.
        title: The figure's title.
    """
    rows, count = variants.shape[:2]
    figure = new_picture(SIDE * count + 0.3, (SIDE + LINE) * rows + 0.6, title)
    places = figure.subplots(rows, count, squeeze=False)
    shown = variants.clamp(0, 255).byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for row in range(rows):
        for column in range(count):
            place = places[row, column]
            place.imshow(shown[row, column], cmap="gray", vmin=0, vmax=255)  # for grayscale images
            place.set(xticks=[], yticks=[])
            place.spines[:].set(visible=False)
            place.set_xlabel(captions[row][column], fontsize=6)
    for place, name in zip(places[0], columns, strict=True):
        place.set_title(name, fontsize=8, loc="center")
    save(figure, path)
    return figure
