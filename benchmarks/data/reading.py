"""Tokens a second from prepared data into (batch, length) arrays, one process: our shards against a loop over Arrow.

shards, in order    sequences one after the other
shards, shuffled    sequences in a random order, each from another place of the whole corpus
arrow loop          the DyT authors' way: for each document `to_pylist()` and a list of BOS, ids and EOS appended to
                    what is left, cut into sequences

All three hand out int32 arrays (batch, length) of the same corpus, read once before, so that the disk plays no part;
what the loop and the shards in order hand out must be equal before a figure is printed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

from common import arguments, in_a_process_of_its_own, make_corpus, make_tokenizer, median_of, with_speed, write_report

BATCH, LENGTH = 8, 4096
REPEAT = 20
"""Times that the shards are walked in one measurement, as once is over too soon."""


def shards(folder: Path, shuffled: bool, repeat: int):
    import numpy as np

    from llama_dyt.data.formats.shards import open_shards

    array = open_shards(folder / "shards")
    sequences = array.num_tokens // LENGTH
    sequences -= sequences % BATCH
    for number in range(repeat):
        order = np.random.default_rng(number).permutation(sequences) if shuffled else np.arange(sequences)
        for first in range(0, sequences, BATCH):
            if shuffled:
                batch = np.empty((BATCH, LENGTH), np.int32)
                for row, sequence in enumerate(order[first : first + BATCH].tolist()):
                    batch[row] = array.tokens(sequence * LENGTH, (sequence + 1) * LENGTH)
                yield batch
            else:
                yield array.tokens(first * LENGTH, (first + BATCH) * LENGTH).reshape(BATCH, LENGTH)


def arrow_loop(folder: Path):
    import numpy as np
    import pyarrow

    manifest = json.loads(next((folder / "shards").glob("manifest*")).read_text(encoding="utf-8"))
    bos, eos = manifest["bos"], manifest["eos"]
    buffer: list[int] = []
    with pyarrow.memory_map(str(folder / "arrow" / "rank_0.arrow")) as mapped:
        reader = pyarrow.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            buffer += [bos] + reader.get_batch(number)["input_ids"].to_pylist() + [eos]
            while len(buffer) >= BATCH * LENGTH:
                yield np.array(buffer[: BATCH * LENGTH], np.int32).reshape(BATCH, LENGTH)
                buffer = buffer[BATCH * LENGTH :]


def measure(side: str, folder: str) -> dict:
    folder = Path(folder)
    makers = {
        "shards, in order": lambda repeat: shards(folder, False, repeat),
        "shards, shuffled": lambda repeat: shards(folder, True, repeat),
        "arrow loop": lambda repeat: arrow_loop(folder),
    }
    make = makers[side]
    digest = hashlib.sha256()
    for batch in make(1):  # brings everything into memory
        digest.update(batch.tobytes())
    begin, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for batch in make(REPEAT):
        tokens += batch.size
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu, "sha256": digest.hexdigest()}


def prepare_both(corpus: Path, tokenizer: Path, folder: Path) -> None:
    from llama_dyt.data.preparing.prepare import prepare
    from llama_dyt.data.preparing.settings import PrepareSettings

    for written_as in ("shards", "arrow"):
        output = str(folder / written_as)
        prepare(PrepareSettings(dataset=str(corpus), output_path=output, tokenizer=str(tokenizer), format=written_as))


SIDES = ("shards, in order", "shards, shuffled", "arrow loop")


def main() -> None:
    parser = arguments(
        __doc__,
        megabytes=(100, "size of the corpus"),
        rounds=(3, "measurements of each side"),
        vocab_size=(32000, "pieces of the tokenizer"),
    )
    given = parser.parse_args()
    folder = given.work / f"reading_{given.megabytes}mb_{given.vocab_size}"
    prepare_both(make_corpus(given.work, given.megabytes), make_tokenizer(given.work, given.vocab_size), folder)
    rows = []
    for _ in range(given.rounds):
        for side in SIDES:
            row = in_a_process_of_its_own(__file__, side, folder)
            rows.append(with_speed(side, row))
            print(f"{side}: {rows[-1]['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
    checksums = {side: {row["sha256"] for row in rows if row["side"] == side} for side in SIDES}
    assert checksums["shards, in order"] == checksums["arrow loop"], "the shards and the loop hand out other tokens"
    per_core = {side: median_of(rows, side, "tokens_per_cpu_second") for side in SIDES}
    speed = {side: median_of(rows, side, "tokens_per_second") for side in SIDES}
    summary = {f"{side}, tokens/s": value for side, value in speed.items()}
    for side in SIDES[:2]:
        summary[f"{side} / arrow loop (goal 50)"] = speed[side] / speed["arrow loop"]
        summary[f"{side} / arrow loop, by time of the core"] = per_core[side] / per_core["arrow loop"]
    write_report("reading", given.results, rows, summary)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
