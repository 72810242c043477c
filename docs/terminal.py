"""Record what commands print in terminals of two widths: CIFAR10_DIR=... python docs/terminal.py docs/terminal.md.

Each command runs in a pseudo-terminal, and its output is replayed on a screen of that width.
"""

import os
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "callbacks"))
from screen import Screen, record  # the tests' screen

WIDTHS = (80, 120)
#: Each command, a caption, and the output after which Ctrl-C is pressed, if at all.
SESSIONS = (
    ("fit --config one_cycle --trainer.max_epochs 3", "Training: one line per epoch, and what you can do next.", None),
    ("test --config one_cycle --ckpt_path best --evaluation.mc_samples 10", "Testing.", None),
    ("find-lr --config selu --num_steps 60", "A learning-rate range test.", None),
    ("fit --config selu", "Ctrl-C after the first epoch.", "epoch   1/100  train"),
    ("fit --config selu --epochs 5", "A mistake.", None),
    ("fit selu", "A forgotten --config.", None),
)
HEAD = """# In the terminal

What commands print in a terminal of {widths} columns, with CIFAR-10 on a CPU. Longer lines contain a command or a path
to copy, which the terminal wraps. During training, the last line is redrawn several times a second. `docs/terminal.py`
writes this page.
"""


def bar(screen: Screen) -> str:
    """A progress line from the middle of the recording; "" if there was none."""
    bars = [row.rstrip() for row in screen.drawn if "━" in row and " left" in row]
    return bars[len(bars) // 2] if bars else ""


def main(target: Path) -> None:
    """Record all sessions at all widths."""
    parts = [HEAD.format(widths=" and of ".join(map(str, WIDTHS)))]
    for width in WIDTHS:
        parts.append(f"\n## {width} columns\n")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for command, what, interrupt_at in SESSIONS:
                screen, status, _ = record(width, shlex.split(command), interrupt_at)
                parts.append(f"\n{what}\n\n```text\n$ cifar-lightning {command}\n{screen.text.strip()}\n```\n")
                parts.append(f"\nExit status {status}.\n" * (status != 0))
                if line := bar(screen):
                    parts.append(f"\nMeanwhile:\n\n```text\n{line}\n```\n")
    target.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
