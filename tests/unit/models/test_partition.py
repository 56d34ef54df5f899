"""Which part of a model each rank holds: the arithmetic, and the policy's own cutting of 70b over 32 ranks."""

import json
import math

import pytest

from llama_dyt.models import FAMILIES, build_config, count_parameters, empty_model, family_of
from llama_dyt.models.partition import layers_of_stages, padded_vocabulary, partition
from tests import forks


def shapes_of(config) -> dict:
    return {name: parameter.shape for name, parameter in empty_model(config).named_parameters()}


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 3), (4, 5)])
def test_the_ranks_hold_every_parameter_once(tp, pp):
    config = build_config(
        "15m", vocab_size=97, num_hidden_layers=7, num_attention_heads=8, num_key_value_heads=4, intermediate_size=96
    )
    stages = partition(shapes_of(config), FAMILIES.get("llama_dyt"), tp, pp)
    assert sum(stage.num_distinct(tp) for stage in stages) == count_parameters(config)
    assert sorted(layer for stage in stages for layer in stage.layer_numbers) == list(range(7))
    assert sorted(name for stage in stages for name in stage.shapes) == sorted(shapes_of(config))
    assert all(stage.num_parameters == sum(map(math.prod, stage.shapes.values())) for stage in stages)


def test_a_tied_head_on_a_stage_of_its_own_is_held_twice_and_counted_once():
    config = build_config("15m", vocab_size=97, num_hidden_layers=4, tie_word_embeddings=True)
    for zigzag in (False, True):
        stages = partition(shapes_of(config), FAMILIES.get("llama_dyt"), 2, 2, chunks=2, zigzag=zigzag, tied=True)
        holders = [stage for stage in stages if "lm_head.weight" in stage.shapes]
        assert holders == ([] if zigzag else stages[1:])  # at both ends of the V is one stage
        assert sum(stage.num_distinct(2) for stage in stages) == count_parameters(config)


def test_left_over_layers_go_to_the_middle_and_chunks_go_round_or_back():
    assert [len(layers) for layers in layers_of_stages(10, 4)] == [2, 3, 3, 2]
    assert layers_of_stages(8, 2, chunks=2) == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert layers_of_stages(8, 2, chunks=2, zigzag=True) == [(0, 1, 6, 7), (2, 3, 4, 5)]


def test_the_vocabulary_is_padded_for_every_rank_alike():
    assert padded_vocabulary(97, 1) == 128
    assert padded_vocabulary(97, 2) == 128
    assert padded_vocabulary(32000, 8) == 32256


SHARD_AS_RANKS = """
import json, sys
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from llama_dyt.boosters.adaptation import adapt_engine

adapt_engine("cpu")
from colossalai.cluster import ProcessGroupMesh
from colossalai.pipeline.stage_manager import PipelineStageManager
from colossalai.shardformer import ShardConfig, ShardFormer

from llama_dyt.boosters.layers.policy import DecoderPolicy
from llama_dyt.models import build_config, empty_model, family_of

size, tp, pp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = build_config(size)
for rank in (stage * tp + place for stage in range(pp) for place in (0, tp - 1)):
    dist.init_process_group("fake", rank=rank, world_size=tp * pp, store=FakeStore())
    mesh = ProcessGroupMesh(1, pp, tp)
    stages = PipelineStageManager(mesh, pipeline_axis=1, enable_interleave=False, num_model_chunks=1)
    shard = ShardConfig(
        tensor_parallel_process_group=mesh.get_group_along_axis(2),
        pipeline_stage_manager=stages,
        enable_tensor_parallelism=True,
    )
    policy = DecoderPolicy(family_of(config), torch.bfloat16, torch.device("meta"))
    # The engine takes the device of a group from its backend and knows no fake one.
    with mock.patch.object(dist, "get_backend", lambda group=None: "gloo"):
        model, _ = ShardFormer(shard).optimize(empty_model(config), policy=policy)
    held = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    print(json.dumps([int(stages.stage), int(mesh.coordinate(2)), held]), flush=True)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("size", "tp", "pp"), [("70b", 8, 4), ("gemma_7b", 4, 2), ("phi_2", 4, 2)])
def test_the_policy_cuts_a_model_over_its_ranks_as_the_arithmetic_says(size, tp, pp):
    """The real policy, on the meta device, as the first and last rank of every stage of a group that only pretends."""
    outcome = forks.run(["-c", SHARD_AS_RANKS, size, str(tp), str(pp)])
    assert outcome.returncode == 0, outcome.stderr
    config = build_config(size)
    stages = partition(shapes_of(config), family_of(config), tp, pp, tied=config.tie_word_embeddings)
    ranks = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [(stage, tp_rank) for stage, tp_rank, _ in ranks] == [(s, r) for s in range(pp) for r in (0, tp - 1)]
    for stage, _, held in ranks:
        assert {name: tuple(shape) for name, shape in held.items()} == stages[stage].shapes
    held_by_all = tp * sum(math.prod(shape) for _, rank, held in ranks if rank == 0 for shape in held.values())
    counted_again = sum((tp - 1) * stage.num_replicated + stage.num_padding + tp * stage.num_copied for stage in stages)
    assert held_by_all - counted_again == count_parameters(config)
