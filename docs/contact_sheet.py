"""Combine pictures of runs in one sheet: python docs/contact_sheet.py docs/pictures.png RUN/learning_curves.png ..."""

import sys
from pathlib import Path

from PIL import Image

COLUMNS, WIDTH, GAP = 3, 640, 24
MOST_BYTES = 500 * 1024


def read(path: Path) -> Image.Image:
    """Read a picture and scale it to the width of a column."""
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((WIDTH, WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS)


def main(target: Path, paths: list[Path]) -> None:
    """Add each picture to the shortest column, and reduce colours until the file is small enough."""
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]

    def height(column: list[Image.Image]) -> int:
        return GAP + sum(picture.height + GAP for picture in column)

    for path in paths:
        min(columns, key=height).append(read(path))
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, max(map(height, columns))), "white")
    for number, column in enumerate(columns):
        for row, picture in enumerate(column):
            sheet.paste(picture, (GAP + number * (WIDTH + GAP), height(column[:row])))
    for colours in (256, 128, 64):
        sheet.quantize(colours, kmeans=3, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))
