"""How an entry runs and ends: a mistake is one line, every rank ends, and nothing waits for what is gone."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from transformers.utils import logging as hf_logging

from llama_dyt.core import ranks
from llama_dyt.core.environment import read_environment
from llama_dyt.core.errors import LlamaDytError
from llama_dyt.core.place import Place
from llama_dyt.core.secrets import keep_out_of_output
from llama_dyt.launch.claim import release_all
from llama_dyt.launch.process_group import shutdown
from llama_dyt.training.signals import end_at_once


def run_entry(main: Callable[[], None]) -> NoReturn:
    """Run an entry's main so that a mistake is one line, every rank ends, and no destructor hangs in a collective.

    Every ending leaves through `os._exit`, a good one too: what is to be kept has been closed by then, and while the
    interpreter takes itself down a thread of gloo or of a tokenizer that asks for its lock aborts the process.
    """
    keep_out_of_output()
    hf_logging.disable_progress_bar()  # a bar for reading one file helps nobody
    status = 0
    end_at_once()
    try:
        try:
            main()
        except (Exception, KeyboardInterrupt) as error:
            ranks.failed(error)  # before the claim is released, which may take its time: it ends with its own words
            raise
        finally:
            release_all()
        shutdown()
    except LlamaDytError as error:
        notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", ()))
        ranks.end(f"error: {error}{notes}", 2, _place(), error)
    except KeyboardInterrupt as error:
        ranks.end("", 130, _place(), error)
    except SystemExit as ending:
        status = ending.code or 0
    except Exception as error:
        ranks.end(f"unexpected failure:\n{traceback.format_exc().rstrip()}", 1, _place(), error)
    shutdown()
    _exit_now(status)


def _place() -> Place:
    """Of this process among the others; alone where the launcher's variables are what is wrong."""
    try:
        return read_environment().place
    except LlamaDytError:
        return Place()


def _exit_now(status: int) -> NoReturn:
    """End without the interpreter's clean-up, which could wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
