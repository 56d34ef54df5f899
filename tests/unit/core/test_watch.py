"""Who looks at whom, and how ranks are named; the rest of the watch is in tests/distributed/test_ranks.py."""

from __future__ import annotations

import json

import torch.distributed as dist

from llama_dyt.core.place import Place
from llama_dyt.core.rendezvous import ranks_in_words
from llama_dyt.core.watch import Watch


def test_each_rank_looks_at_all_others_of_its_machine():
    machines = ["a", "a", "a", "b", "b", "c", None]  # the last could not find out where it is
    store = dist.HashStore()
    for rank, machine in enumerate(machines):
        store.set(f"here/{rank}", json.dumps({"machine": machine, "host": machine, "pid": rank, "started": 0}))
    found = {}
    for rank in range(len(machines)):
        watch = Watch(store, Place(rank, len(machines)), timeout=1.0)
        watch.all_came()
        found[rank] = [peer.rank for peer in watch._peers]
    assert found == {0: [1, 2], 1: [0, 2], 2: [0, 1], 3: [4], 4: [3], 5: [], 6: []}


def test_ranks_are_named_by_their_runs():
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([7, 0, 2, 3, 4]) == "ranks 0, 2-4, 7"
