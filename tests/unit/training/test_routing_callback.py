"""What a record says of routers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.models import build_config, build_model
from llama_dyt.training.callbacks.routing import LOADS_INTERVAL, Routing

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def test_a_record_has_how_evenly_routers_choose_and_every_tenth_each_expert():
    config = build_config("mixtral_8x2m", "dyt", **SIZES, intermediate_size=32, vocab_size=61)
    model = build_model(config, seed=0)
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.zero_()  # prefers nothing
    trainer = SimpleNamespace(boosted=SimpleNamespace(routing=model.model.routing_board))
    callback, ids = Routing(RunConfig.build("pretrain", config="15m")), torch.arange(60).view(2, 30)
    assert callback.record(trainer, None) == {}, "no step yet"
    for number in range(LOADS_INTERVAL + 1):
        model(ids, labels=ids)
        record = callback.record(trainer, None)
        assert ("expert_load" in record) == (number % LOADS_INTERVAL == 0)
        assert ("router_entropy_by_layer" in record) == (number % LOADS_INTERVAL == 0)
    loads, entropies = record["expert_load"], record["router_entropy_by_layer"]
    assert entropies["1"] == pytest.approx(math.log(8)) and 0 < entropies["0"] < math.log(8) - 1e-5
    assert sum(entropies.values()) / 2 == pytest.approx(record["router_entropy"])
    assert len(loads) == 16 and sum(loads.values()) == pytest.approx(16)
    assert record["expert_load_most"] == max(loads.values()) and record["expert_load_least"] == min(loads.values())
    assert "router_dropped" not in record, "all had a place"
    assert 0.9 * math.log(8) < record["router_entropy"] < math.log(8)
    assert 1.9 < record["router_balance_loss"] < 2.5 and record["router_z"] > math.log(8) ** 2 - 0.5


def test_a_record_counts_what_had_no_place_where_experts_have_a_capacity():
    config = build_config(
        "mixtral_8x2m", "dyt", **SIZES, intermediate_size=32, vocab_size=61, expert_capacity_factor=0.5
    )
    model, ids = build_model(config, seed=0), torch.arange(60).view(2, 30)
    model(ids, labels=ids)
    trainer = SimpleNamespace(boosted=SimpleNamespace(routing=model.model.routing_board))
    record = Routing(RunConfig.build("pretrain", config="15m")).record(trainer, None)
    dropped, chosen, places = record["router_dropped"], 2 * 60 * 2, 2 * 8 * 8
    assert chosen - places <= dropped < chosen and isinstance(dropped, int)
    assert record["router_dropped_share"] == pytest.approx(dropped / chosen)


def test_a_run_without_experts_has_nothing_to_say():
    trainer = SimpleNamespace(boosted=SimpleNamespace(routing=None))
    assert Routing(RunConfig.build("pretrain", config="15m")).record(trainer, None) == {}
