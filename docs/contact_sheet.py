"""Put pictures of runs on one sheet: python docs/contact_sheet.py docs/pictures.png RUN/learning_curves.png ..."""

import sys
from pathlib import Path

from PIL import Image

COLUMNS, WIDTH, HEIGHT, GAP = 3, 640, 430, 20
MOST_BYTES = 500 * 1024


def read(path: Path) -> Image.Image:
    """A picture, as small as on the sheet."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return small


def main(target: Path, paths: list[Path]) -> None:
    """Lay the pictures out in rows, and write them in as few colours as it takes to stay small."""
    pictures = [read(path) for path in paths]
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    heights = [GAP + max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, sum(heights) + GAP), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (WIDTH + GAP), GAP + sum(heights[:number])))
    for colours in (256, 128, 64):
        sheet.quantize(colours, kmeans=3, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))
