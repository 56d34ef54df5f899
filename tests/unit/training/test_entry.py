"""How an entry ends: with the right status, its output whole, and without the interpreter taking itself down."""

from __future__ import annotations

from tests import forks

PROGRAM = """
import atexit, os, sys, time
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.entry import run_entry

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
    "sys.exit(75)": 75,
    "sys.exit()": 0,
    "raise ConfigurationError('--x is wrong')": 2,
    "raise KeyError('x')": 1,
    "raise KeyboardInterrupt": 130,
}


def test_every_ending_has_its_status_and_its_whole_output():
    outcome = forks.run(["-c", PROGRAM, *ENDINGS])
    assert outcome.stdout.splitlines() == [f"{what};{status}" for what, status in ENDINGS.items()], outcome.stderr
