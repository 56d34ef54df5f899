"""How an entry ends: with the right status, its output whole, and without the interpreter taking itself down."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, os, sys, time
from llama_dyt.errors import ConfigurationError
from llama_dyt.training.session import run_entry

# Stands for what a native thread does there: it aborts the process.
atexit.register(lambda: print("the interpreter took itself down"))

def ending(what):
    print(what, end=";")
    exec(what)

for what in sys.argv[1:]:
    child = os.fork()  # importing the engine takes seconds: once for all of them
    if not child:
        run_entry(lambda: ending(what))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""

ENDINGS = {
    "pass": 0,
    "sys.exit(143)": 143,
    "sys.exit()": 0,
    "raise ConfigurationError('--x is wrong')": 2,
    "raise KeyError('x')": 1,
    "raise KeyboardInterrupt": 130,
}


def test_every_ending_has_its_status_and_its_whole_output():
    command = [sys.executable, "-c", PROGRAM, *ENDINGS]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.stdout.splitlines() == [f"{what};{status}" for what, status in ENDINGS.items()], outcome.stderr
