"""Put pictures of runs on one sheet: python docs/contact_sheet.py docs/pictures.png RUN/learning_curves.png ..."""

import sys
from pathlib import Path

from PIL import Image

COLUMNS, WIDTH, HEIGHT, GAP = 3, 640, 430, 16
MOST_BYTES = 500 * 1024


def main(target: Path, pictures: list[Path]) -> None:
    """Lay the pictures out in rows, and write them in as few colours as it takes to stay small."""
    rows = -(-len(pictures) // COLUMNS)
    size = COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    for index, path in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        x, y = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + GAP)
        sheet.paste(small, (x + (WIDTH - small.width) // 2, y + (HEIGHT - small.height) // 2))
    for colours in (256, 128, 64, 32):
        sheet.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))
