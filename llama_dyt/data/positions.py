"""A place in a run's data as JSON: how it is written after a step, and what it must agree with to be gone on from.

Its own file because positions outlive programs: those of checkpoints made before there were mixtures are read here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llama_dyt.data.mixture import Schedule
from llama_dyt.data.opening import Feed
from llama_dyt.data.sequences import Supply
from llama_dyt.data.tokenizer import tokenizer_fingerprint
from llama_dyt.errors import DataError

_NEW_RUN = "to train on other data from these weights, start a new run with --model_path"
_COUNTS = ("sequences", "tokens")


@dataclass
class Counts:
    """Sequences and tokens that each source has given since the run began."""

    sequences: list[int]
    tokens: list[int]

    @classmethod
    def of(cls, state: dict, feeds: Sequence[Feed]) -> Counts:
        sources = [state["sources"].get(feed.name) or dict.fromkeys(_COUNTS, 0) for feed in feeds]
        return cls([source["sequences"] for source in sources], [source["tokens"] for source in sources])

    def add(self, number: int, num_tokens: int) -> None:
        self.sequences[number] += 1
        self.tokens[number] += num_tokens

    def in_words(self, feeds: Sequence[Feed], supplies: Sequence[Supply]) -> dict[str, int]:
        """Flat counters of a mixture's sources; nothing where there is no mixture."""
        words: dict[str, int] = {}
        for number, (feed, supply) in enumerate(zip(feeds, supplies, strict=True)):
            if feed.name:
                words[f"{feed.name}/sequences"] = self.sequences[number]
                words[f"{feed.name}/tokens"] = self.tokens[number]
                words[f"{feed.name}/epochs"] = supply.num_epochs_done
        return words


def order_mark(feed: Feed, seed: int, shuffle_buffer: int) -> str:
    """What the order of a feed's tokens depends on besides its data."""
    if feed.shuffle == "none":
        return "none"
    mark = f"{feed.shuffle}, seed {seed}"
    return mark if feed.is_array or feed.shuffle == "sequences" else f"{mark}, buffer {shuffle_buffer}"


def mixture_mark(feeds: Sequence[Feed]) -> str:
    """Changes when the sources of a mixture, their order or their relative weights do."""
    total = sum(feed.weight for feed in feeds)
    listing = "\n".join(f"{feed.name}\t{feed.weight / total}" for feed in feeds)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def position_of(
    start: dict, feeds: Sequence[Feed], supplies: Sequence[Supply], schedule: Schedule, counts: Counts
) -> dict:
    """The position after a step.

    `sequences` is the number of the next sequence of the run; of each source there is where its next one begins.
    """
    sources = {}
    for number, (feed, supply) in enumerate(zip(feeds, supplies, strict=True)):
        sources[feed.name] = {
            "data": feed.fingerprint,
            "order": start["orders"][feed.name],
            "sequences": counts.sequences[number],
            "tokens": counts.tokens[number],
            "epochs": supply.num_epochs_done,
            **supply.state(),
        }
    running = schedule.running
    position = {
        "sequences": sum(counts.sequences),
        "tokens": sum(counts.tokens),
        "bad_lines": sum(supply.num_bad_lines for supply in supplies),
        "tokenizer": start["tokenizer"],
        "sources": sources,
    }
    if len(feeds) > 1:
        stopped = [feed.name for number, feed in enumerate(feeds) if number not in running]
        position |= {"mixture": start["mixture"], "turns": schedule.state, "stopped": stopped}
    return position


def starting_point(state: dict | None, feeds: Sequence[Feed], tokenizer, seed: int, shuffle_buffer: int) -> dict:
    """The position to begin at, after making sure that it was made with this data, order and tokenizer.

    Returns:
        a position, with `orders` (the mark of each feed's order), `turns` and `stopped` in any case.
    """
    orders = {feed.name: order_mark(feed, seed, shuffle_buffer) for feed in feeds}
    marks = {"tokenizer": tokenizer_fingerprint(tokenizer), "mixture": mixture_mark(feeds), "orders": orders}
    if state is None:
        return {"sources": {}, "turns": None, "stopped": [], **marks}
    if "sources" not in state:
        state = _of_one_stream(state)
    if state["tokenizer"] != marks["tokenizer"]:
        raise DataError(
            f"the tokenizer is not the one that the checkpoint was reading with; restore it to resume; {_NEW_RUN}"
        )
    names = [feed.name for feed in feeds]
    if sorted(state["sources"]) != sorted(names) or state.get("mixture", marks["mixture"]) != marks["mixture"]:
        raise DataError(
            f"the mixture's sources or weights are not those that the checkpoint was reading "
            f"({', '.join(filter(None, state['sources'])) or 'one dataset'}); restore them to resume; {_NEW_RUN}"
        )
    for feed in feeds:
        source = state["sources"][feed.name]
        if source["data"] != feed.fingerprint:
            what = f"{feed} is not the one" if feed.name else "the dataset is not the one"
            raise DataError(
                f"{what} that the checkpoint was reading (another name, or files added, removed or changed); restore "
                f"it to resume; {_NEW_RUN}"
            )
        if source["order"] != orders[feed.name]:
            raise DataError(
                f"{feed} was read in another order: shuffling was {source['order']}, now it is {orders[feed.name]}; "
                "give --shuffle, --shuffle_buffer and --seed as they were"
            )
    return {"turns": None, "stopped": [], **state, **marks}


def _of_one_stream(state: dict) -> dict:
    """A position as it was written before there were mixtures and shuffling: of one stream of text."""
    source = {key: state[key] for key in ("epoch", "source", "token", "bad_lines", *_COUNTS)}
    return {
        "tokenizer": state["tokenizer"],
        "sources": {"": {**source, "data": state["dataset"], "order": "none"}},
    }
