"""A terminal's screen, of what a program has written: as much of one as a line that is drawn anew needs."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

TOKEN = re.compile(r"\x1b\[(\?25[hl]|\d*(?:;\d+)*m|\d*[AKG])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """What is to be seen, scrolled-out lines included.

    Args:
        columns: The terminal's width: what is written beyond is wrapped, as terminals do.
        written: What was written.
    """

    def __init__(self, columns, written):
        self.columns, self.rows, self.row, self.column = columns, [""], 0, 0
        self.wrapped = []  # what was written at the margin, and went on in the next row
        self.drawn = []  # each row as it was whenever the cursor left it or went back to its start
        self.cursor = True
        place = 0
        while place < len(written):
            token = TOKEN.match(written, place)
            assert token, f"unknown: {written[place : place + 20]!r}"
            place = token.end()
            self._obey(*token.groups())

    def _obey(self, sequence, control, text):
        if text is not None:
            for start in range(0, len(text)):
                self._put(text[start])
        elif control is not None:
            self.drawn.append(self.rows[self.row])
            self.column = 0
            if control == "\n":
                self._go_down()
        elif sequence.startswith("?25"):
            self.cursor = sequence.endswith("h")
        elif sequence.endswith("A"):
            self.row = max(0, self.row - int(sequence[:-1] or 1))
        elif sequence.endswith("K"):
            assert sequence == "2K", sequence
            self.rows[self.row] = ""
        elif sequence.endswith("G"):
            self.column = int(sequence[:-1] or 1) - 1

    def _put(self, character):
        if self.column == self.columns:
            self.wrapped.append(self.rows[self.row])
            self.column = 0
            self._go_down()
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    def _go_down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    @property
    def text(self):
        return "\n".join(row.rstrip() for row in self.rows)


def record(columns, args, interrupt_at=None, **environment):
    """Run the command line in a terminal; return its screen and its exit status.

    Args:
        columns: The terminal's width.
        args: The arguments.
        interrupt_at: After what has been written Ctrl-C is pressed; None for never.
        **environment: Variables besides those of this process.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning", *args],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=_lead_the_terminal,
        env=variables | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while block := _read(ours):
        written += block
        if interrupt_at is not None and interrupt_at in written.decode(errors="replace"):
            os.write(ours, b"\x03")
            interrupt_at = None
    os.close(ours)
    return Screen(columns, written.decode()), process.wait(), written.decode()


def _lead_the_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background ignores


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody writes any more
        return b""
