"""What a loader hands over is made ahead, in a thread that ends with whoever asked for it."""

import subprocess
import sys
import threading

import numpy as np
from corpora import write_jsonl
from loading import ListSource, token_batches

from llama_dyt.data.loaders.step import Prefetcher, Step


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name == "llama_dyt-data"]


def test_closing_ends_the_thread(tokenizer):
    loader = token_batches(ListSource(["word " * 50] * 500), tokenizer, 8, 1)
    next(loader)
    assert loader._thread.is_alive()
    loader.close()
    assert not loader._thread.is_alive()
    assert list(loader) == []


def test_dropping_the_loader_ends_the_thread(tokenizer):
    loader = token_batches(ListSource(["word " * 50] * 500), tokenizer, 8, 1)
    thread = loader._thread
    next(loader)
    del loader
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert thread not in data_threads()


def test_program_that_ends_while_data_is_prepared_ends_cleanly(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["some more words " * 20_000] * 30)
    program = (
        "import sys\n"
        "from llama_dyt.data.loaders.packed import BatchShape, TokenBatches\n"
        "from llama_dyt.data.tokenizing.tokenizer import load_tokenizer\n"
        "loader = TokenBatches(sys.argv[1], load_tokenizer(sys.argv[2]), 4096, BatchShape(200))\n"
        "next(loader)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, tokenizer.name_or_path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_reading_ahead_is_bounded(tokenizer):
    source = ListSource(["word " * 100] * 100_000)
    read = []
    walk = source.iterate
    source.iterate = lambda position=None: (read.append(1) or record for record in walk(position))
    loader = token_batches(source, tokenizer, 64, 1, prefetch=2)
    next(loader)
    threading.Event().wait(0.5)
    assert len(read) < 2000
    loader.close()


def test_batches_own_their_memory(tokenizer):
    """A rank keeps its own rows, not a view of the whole global batch."""
    loader = token_batches(ListSource(["word " * 200] * 5), tokenizer, 16, 2, 1, 1, 4)
    for batch in next(loader).micro_batches:
        assert batch["input_ids"].untyped_storage().nbytes() == batch["input_ids"].numel() * np.dtype(np.int64).itemsize
    loader.close()


def test_whether_the_next_step_is_there_is_asked_without_taking_it():
    sent = threading.Event()

    def make():
        yield Step([], 1, 1, {"number": 0})
        sent.wait()
        yield Step([], 1, 1, {"number": 1})

    with Prefetcher(make) as steps:
        assert steps.ready(60) and steps.ready(0)
        assert next(steps).position == {"number": 0}
        assert not steps.ready(0.05)
        sent.set()
        assert steps.ready(60)
        assert [step.position["number"] for step in steps] == [1]
        assert steps.ready(0), "the end is there"
