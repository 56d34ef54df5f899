"""How an entry ends: with the right status, its output whole, and without the interpreter taking itself down."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from llama_dyt.errors import ConfigurationError
from llama_dyt.training.session import run_entry

# Stands for what a native thread does there: it aborts the process.
atexit.register(lambda: print("the interpreter took itself down"))

def main():
    print("last words", end="")
    {ending}

run_entry(main)
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("return", 0),
        ("sys.exit(143)", 143),
        ("sys.exit()", 0),
        ("raise ConfigurationError('--x is wrong')", 2),
        ("raise KeyError('x')", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_every_ending_has_its_status_and_its_whole_output(ending, status):
    program = PROGRAM.format(ending=ending)
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert outcome.returncode == status, outcome.stderr
    assert outcome.stdout == "last words"
