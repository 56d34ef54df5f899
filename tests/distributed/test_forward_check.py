"""What checkpoints keep of a model's outputs is what plain PyTorch computes, under every booster; it changes nothing of
the training, and a checkpoint whose weights are others than those it was written with is told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_dyt.training.checkpoint import forward_check
from llama_dyt.training.checkpoint.forward_check import Computed, apart, known_forward
from llama_dyt.training.checkpoint.marker import described, marker_of, read_marker
from tests.distributed import forward_cases, small_run
from tests.distributed.forward_cases import NUM_STEPS
from tests.distributed.parity import merged
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

MARGIN = 5
"""So many times nearer than a checkpoint is allowed to be."""

LAYOUTS = [
    (Layout("gemini", 2), "bf16", "15m"),
    (Layout("fsdp", 2), "fp32", "15m"),
    (hybrid(4, tp=2, pp=2), "fp32", "15m"),
    (hybrid(4, pp=2, pp_style="zbv", sp=2), "fp32", "15m"),
    (hybrid(2, tp=2, sp_mode="split_gather"), "bf16", "mixtral_8x2m"),
]
OTHERS = [
    *((layout, layout.precisions[-1], "15m") for layout in small_run.LAYOUTS),
    (Layout("gemini_auto", 2), "fp16", "15m"),
    (hybrid(2, pp=2, pp_style="interleaved"), "fp32", "15m"),
    (hybrid(2, sp=2), "fp32", "mistral_7b"),
    (hybrid(2, sp=2), "fp32", "mixtral_8x2m"),
    (hybrid(4, pp=2, ep=2), "bf16", "mixtral_8x2m"),
    (Layout("fsdp", 2, flags=(("ep", 2),)), "bf16", "mixtral_8x2m"),
    (hybrid(2, tp=2), "bf16", "gemma_2b"),
    (hybrid(2, tp=2), "fp32", "phi_2"),
]
CASES = [*LAYOUTS, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHERS)]


def plainly(weights: dict[str, torch.Tensor], family: str) -> Computed:
    """By one process in fp32, with transformers' interface alone."""
    model = small_run.small_model(family=family).eval()
    model.load_state_dict(weights, strict=True)
    known = known_forward(small_run.VOCAB_SIZE)
    ids = torch.tensor([known.tokens])
    with torch.no_grad():
        outputs = model(ids, labels=ids)
    logits = outputs.logits[0][list(known.positions)][:, list(known.entries)]
    return Computed(known, outputs.loss.item(), logits.tolist(), "fp32", None)


@pytest.mark.parametrize(("layout", "precision", "family"), CASES, ids=str)
def test_it_is_what_plain_pytorch_computes_and_leaves_no_trace(pool, layout: Layout, precision: str, family: str):
    case = {"layout": layout, "precision": precision, "family": family}
    without, computing = zip(*pool(layout.world_size).run(forward_cases.courses, **case))
    for before, after in zip(without, computing):
        assert before.losses == after.losses and before.draws == after.draws
        assert all(torch.equal(tensor, after.weights[name]) for name, tensor in before.weights.items())
        assert after.left == []
        assert after.computed == computing[0].computed, "all ranks know the same"
    found = computing[0].computed
    assert len(found) == NUM_STEPS + 1
    bound = forward_check.TOLERANCES[precision] / MARGIN
    initial = small_run.small_model(family=family).state_dict()
    by_choice = family == "mixtral_8x2m"
    for weights, one in ((initial, found[0]), (merged(computing, "weights"), found[-1])):
        assert max(apart(plainly(weights, family), one, by_choice)) < bound
    assert max(apart(found[0], found[-1], by_choice)) > forward_check.TOLERANCES["bf16"], "three steps are told"


@pytest.fixture(scope="module")
def saved(pool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    case = {"layout": Layout("zero2", 2), "precision": "bf16", "folder": str(folder)}
    return Path(pool(2).run(forward_cases.save_once, **case)[0])


def with_other_weights(path: Path, name: str, folder: Path) -> Path:
    """A copy, whose marker fits, with one tensor's sign changed."""
    copy = folder / path.name
    shutil.copytree(path, copy)
    file = copy / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = -tensors[name]
    save_file(tensors, file, {"format": "pt"})
    write_marker(copy)
    return copy


def write_marker(folder: Path) -> None:
    (folder / "COMPLETE").unlink()
    (folder / "COMPLETE").write_text(marker_of(described(folder)))


@pytest.mark.parametrize(
    ("layout", "precision", "name"),
    [
        (Layout("zero2", 2), "bf16", "model.layers.1.mlp.down_proj.weight"),
        (hybrid(2, pp=2), "fp32", "model.norm.alpha"),
    ],
    ids=str,
)
def test_weights_that_were_changed_are_told_under_any_layout(pool, saved, tmp_path, layout, precision, name):
    copy = with_other_weights(saved, name, tmp_path)
    for error in pool(2).run(forward_cases.loading, layout=layout, precision=precision, path=str(copy)):
        assert error.startswith(f"the model of {copy} computes something else than before: on fixed tokens it gives a ")
        assert "(in bf16 4.00% is allowed, and 0.40% of the loss)" in error and "--no-verify" in error


def test_checkpoints_of_before_it_and_changes_that_were_meant_are_loaded(pool, saved, tmp_path):
    copy = with_other_weights(saved, "model.norm.alpha", tmp_path)
    case = {"layout": Layout("zero2", 2), "precision": "bf16", "path": str(copy)}
    assert pool(2).run(forward_cases.loading, **case, verify=False) == ["", ""]
    (copy / "forward_check.json").unlink()
    write_marker(copy)
    assert pool(2).run(forward_cases.loading, **case) == ["", ""]


def test_it_is_one_of_the_files_of_a_checkpoint(saved):
    assert "forward_check.json" in read_marker(saved)
    kept = json.loads((saved / "forward_check.json").read_text())
    assert Computed.of_json(kept).to_json() == kept
    assert len(kept["tokens"]) == 16 and 0 <= min(kept["tokens"]) <= max(kept["tokens"]) < small_run.VOCAB_SIZE
