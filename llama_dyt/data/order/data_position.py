"""A place in a run's data as JSON: how it is written after a step, and what it must agree with to be gone on from.

Positions outlive programs: those of checkpoints made before there were mixtures are read here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llama_dyt.core.errors import DataError
from llama_dyt.data.opening import Order, WeightedSource
from llama_dyt.data.order.mixture import MixtureSchedule
from llama_dyt.data.order.packed_sequences import PackedSequences
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint

_NEW_RUN = "to train on other data from these weights, start a new run with --model_path"
_COUNTS = ("sequences", "tokens")


@dataclass
class Counts:
    """Sequences and tokens that each source has given since the run began."""

    sequences: list[int]
    tokens: list[int]

    @classmethod
    def of(cls, state: dict, sources: Sequence[WeightedSource]) -> Counts:
        found = [state["sources"].get(source.name) or dict.fromkeys(_COUNTS, 0) for source in sources]
        return cls([counts["sequences"] for counts in found], [counts["tokens"] for counts in found])

    def add(self, number: int, num_tokens: int) -> None:
        self.sequences[number] += 1
        self.tokens[number] += num_tokens

    def in_words(self, sources: Sequence[WeightedSource], sequences: Sequence[PackedSequences]) -> dict[str, int]:
        """Flat counters of a mixture's sources; nothing where there is no mixture."""
        words: dict[str, int] = {}
        for number, (source, of_source) in enumerate(zip(sources, sequences, strict=True)):
            if source.name:
                words[f"{source.name}/sequences"] = self.sequences[number]
                words[f"{source.name}/tokens"] = self.tokens[number]
                words[f"{source.name}/epochs"] = of_source.num_epochs_done
        return words


def order_mark(source: WeightedSource, order: Order) -> str:
    """What the order of a source's tokens depends on besides its data."""
    shares = f"{order.shares} shares" if order.shares > 1 else ""
    if source.shuffle == "none":
        return f"none, {shares}" if shares else "none"
    mark = f"{source.shuffle}, seed {order.seed}" + (f", {shares}" if shares else "")
    return mark if source.data.has_random_access else f"{mark}, buffer {order.shuffle_buffer}"


def mixture_mark(sources: Sequence[WeightedSource]) -> str:
    """Changes when the sources of a mixture, their order or their relative weights do."""
    total = sum(source.weight for source in sources)
    listing = "\n".join(f"{source.name}\t{source.weight / total}" for source in sources)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def position_of(
    start: dict,
    sources: Sequence[WeightedSource],
    sequences: Sequence[PackedSequences],
    schedule: MixtureSchedule,
    counts: Counts,
) -> dict:
    """The position after a step.

    `sequences` is the number of the next sequence of the run; of each source there is where its next one begins.
    """
    places = {}
    for number, (source, of_source) in enumerate(zip(sources, sequences, strict=True)):
        places[source.name] = {
            "data": source.fingerprint,
            "order": start["orders"][source.name],
            "sequences": counts.sequences[number],
            "tokens": counts.tokens[number],
            "epochs": of_source.num_epochs_done,
            **of_source.state(),
        }
    running = schedule.running
    position = {
        "sequences": sum(counts.sequences),
        "tokens": sum(counts.tokens),
        "bad_lines": sum(of_source.num_bad_lines for of_source in sequences),
        "tokenizer": start["tokenizer"],
        "sources": places,
    }
    if len(sources) > 1:
        stopped = [source.name for number, source in enumerate(sources) if number not in running]
        position |= {"mixture": start["mixture"], "turns": schedule.state, "stopped": stopped}
    return position


def starting_point(state: dict | None, sources: Sequence[WeightedSource], tokenizer, order: Order) -> dict:
    """The position to begin at, after making sure that it was made with this data, order and tokenizer.

    Returns:
        a position, with `orders` (the mark of each source's order), `turns` and `stopped` in any case.
    """
    orders = {source.name: order_mark(source, order) for source in sources}
    marks = {"tokenizer": tokenizer_fingerprint(tokenizer), "mixture": mixture_mark(sources), "orders": orders}
    if state is None:
        return {"sources": {}, "turns": None, "stopped": [], **marks}
    if "sources" not in state:
        state = _of_one_stream(state)
    if state["tokenizer"] != marks["tokenizer"]:
        raise DataError(
            f"the tokenizer is not the one that the checkpoint was reading with; restore it to resume; {_NEW_RUN}"
        )
    names = [source.name for source in sources]
    if sorted(state["sources"]) != sorted(names) or state.get("mixture", marks["mixture"]) != marks["mixture"]:
        raise DataError(
            f"the mixture's sources or weights are not those that the checkpoint was reading "
            f"({', '.join(filter(None, state['sources'])) or 'one dataset'}); restore them to resume; {_NEW_RUN}"
        )
    for source in sources:
        place = state["sources"][source.name]
        if place["data"] != source.fingerprint:
            what = f"{source} is not the one" if source.name else "the dataset is not the one"
            raise DataError(
                f"{what} that the checkpoint was reading (another name, or files added, removed or changed); restore "
                f"it to resume; {_NEW_RUN}"
            )
        if place["order"] != orders[source.name]:
            raise DataError(
                f"{source} was read in another order: shuffling was {place['order']}, now it is {orders[source.name]}; "
                "give --shuffle, --shuffle_buffer, --seed and --stream_shares as they were"
            )
    return {"turns": None, "stopped": [], **state, **marks}


def _of_one_stream(state: dict) -> dict:
    """A position as it was written before there were mixtures and shuffling: of one stream of text."""
    source = {key: state[key] for key in ("epoch", "source", "token", "bad_lines", *_COUNTS)}
    return {
        "tokenizer": state["tokenizer"],
        "sources": {"": {**source, "data": state["dataset"], "order": "none"}},
    }
