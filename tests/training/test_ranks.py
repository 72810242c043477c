import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_ranks():
    """Those of `ranks.py`, in a process of their own: one that has computed gradients can't be forked for more."""
    quiet = ["-q", "-p", "no:cacheprovider", "--no-header"]
    command = [sys.executable, "-m", "pytest", *quiet, str(Path(__file__).with_name("ranks.py"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
