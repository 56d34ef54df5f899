"""The arithmetic of benchmarks/: ratios, terms of a step, and the page that is made of their results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.common import KEEP_LARGE_BUFFERS, ratio_of_pairs, say_ratio
from llama_dyt.models import build_config, build_model
from llama_dyt.models.ops.routing import RoutingBoard

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benchmarks"))  # as `python benchmarks/breakdown.py` has it

from benchmarks.breakdown import REST, device_seconds, table, term_of, union_seconds  # noqa: E402
from benchmarks.experts import Arm, arms, logit_bound, routers  # noqa: E402
from benchmarks.experts import table as table_of_experts  # noqa: E402
from benchmarks.steps import compare_losses  # noqa: E402
from benchmarks.string_tasks import TASKS, Size, write_data  # noqa: E402


def test_the_ratio_of_pairs_is_not_moved_by_what_hits_both_sides():
    noise = [1.0, 9.0, 1.1, 0.9, 30.0, 1.0, 1.2, 1.0, 5.0, 1.0, 1.0]
    ratio = ratio_of_pairs([2.0 * n for n in noise], noise)
    assert ratio == {"median": 2.0, "interval": [2.0, 2.0], "pairs": 11}
    assert say_ratio("ours / theirs", ratio) == "ours / theirs: 2.000 (95% interval 2.000 to 2.000, 11 pairs)"


def test_the_interval_holds_the_median_and_is_the_same_every_time():
    ours, theirs = [1.0, 1.2, 0.9, 1.1, 1.3, 0.8, 1.0, 1.05, 0.95, 1.15], [1.0] * 10
    ratio = ratio_of_pairs(ours, theirs)
    low, high = ratio["interval"]
    assert min(ours) <= low < ratio["median"] < high <= max(ours)
    assert ratio["median"] == pytest.approx(1.025)
    assert ratio == ratio_of_pairs(ours, theirs)


def test_pairs_of_one_launch_count_as_one_another():
    """Two launches of which one has luck say less than as many pairs that have it one by one."""
    ours, theirs = [1.0, 1.01, 0.99, 1.0, 1.1, 1.11, 1.09, 1.1], [1.0] * 8
    apart = ratio_of_pairs(ours, theirs)["interval"]
    low, high = ratio_of_pairs(ours, theirs, launches=[0, 0, 0, 0, 1, 1, 1, 1])["interval"]
    assert low < 1.0 + 1e-9 and high > 1.1 - 1e-9
    assert high - low >= apart[1] - apart[0]


def test_benchmarks_keep_large_buffers_as_the_launch_scripts_do():
    command = ". scripts/common.sh; keep_large_buffers; env"
    told = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True, env={})
    assert {f"{name}={value}" for name, value in KEEP_LARGE_BUFFERS.items()} <= set(told.stdout.splitlines())


def test_no_pairs_are_an_error():
    for ours, theirs in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="make no pairs"):
            ratio_of_pairs(ours, theirs)


def test_sides_that_train_something_else_are_not_compared():
    losses = {"ours": [10.0, 9.0], "bare": [10.0, 9.00001]}
    assert compare_losses(losses, 1e-5) == pytest.approx(1.1e-6, rel=0.1)
    with pytest.raises(SystemExit, match=r"step 2: bare has loss 9.1, ours 9.0: not the same training"):
        compare_losses({**losses, "bare": [10.0, 9.1]}, 1e-5)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<...>>", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("triton_red_fused__to_copy_mul_sum_tanh_3", REST),
        ("triton_poi_fused_add_mul_silu_2", REST),
        ("triton_red_fused__log_softmax_0", "loss"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and fills"),
        ("aten::mm", "matmul"),
        ("aten::mul", REST),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::_log_softmax_backward_data", "loss"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
    ],
)
def test_kernels_and_operators_find_their_term(name, term):
    assert term_of(name) == term


def test_terms_are_a_step_and_streams_that_overlap_count_once():
    terms = device_seconds([("aten::mm", 3.0), ("aten::mm", 1.0), ("aten::mul", 1.0)], steps=2)
    assert terms["matmul"] == 2.0 and terms[REST] == 0.5 and terms["attention"] == 0.0
    assert union_seconds([(0, 2), (1, 3), (5, 6), (5.5, 5.8)]) == 4


def test_the_table_of_terms_is_largest_first():
    row = {"terms_seconds": {"loss": 0.1, "matmul": 0.3}, "matmul_rate_tflops": 700.0}
    lines = table({**row, "matmul_seconds_at_that_rate": 0.2}).splitlines()
    assert lines[2:] == [
        "| matmul | 300.0 | 75.0% |",
        "| loss | 100.0 | 25.0% |",
        "| matmul at 700.00 TFLOPS | 200.0 | 50.0% |",
    ]


def printed(*words: str) -> str:
    command = [sys.executable, str(REPOSITORY / "scripts/performance_tables.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_page_has_the_tables_of_the_newest_results():
    page = (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")
    assert page == printed(), "run: python scripts/performance_tables.py --write"


def test_the_newest_report_of_a_benchmark_makes_its_table(tmp_path):
    ratio = {"median": 1.5, "interval": [1.4, 1.6], "pairs": 10}
    for date, key in (("2026-01-01", "old"), ("2026-02-01", "new")):
        report = {"benchmark": "steps-15m", "date": f"{date}T00:00:00+00:00", "command": "python x.py", "machine": "m"}
        report |= {"versions": {"torch": "2"}, "summary": {f"{key} / bare": ratio, "MB": 1234.5}, "rows": []}
        (tmp_path / f"{date}-steps-15m.json").write_text(json.dumps(report))
    page = printed("--results", str(tmp_path))
    assert "| new / bare | 1.500 (1.400 to 1.600, 10 pairs) |" in page and "| MB | 1,234.5 |" in page
    assert "old" not in page.split("<!-- tables begin")[1]


def test_words_that_are_asked_are_in_nothing_that_is_learned(tmp_path):
    size = Size(words=60, held_out=5)
    write_data(tmp_path, size, seed=0)
    rows = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("text", "pairs", "chats", "asked")}
    asked = [json.loads(line) for line in rows["asked"]]
    words = {row["prompt"].split(": ")[1].strip() for row in asked}
    assert len(words) == 5 and len(asked) == 5 * len(TASKS)
    learned = {json.loads(line)["prompt"].split(": ")[1].strip() for line in rows["pairs"]}
    assert len(learned) == 60 and not words & learned
    assert all(row["expected"] == TASKS[row["task"]](row["prompt"].split(": ")[1].strip()) for row in asked)


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_a_routers_bound_is_held_and_reached(norm):
    config = build_config("mixtral_8x2m", norm=norm, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    layer = build_model(config, seed=0).model.layers[0]
    with torch.no_grad():
        torch.nn.init.normal_(layer.post_attention_layernorm.weight)
    bound = logit_bound(norm, layer)
    products = layer.post_attention_layernorm.weight * layer.mlp.gate.weight

    def logits(read):
        return layer.mlp.gate(layer.post_attention_layernorm(read)).abs().max().item()

    assert all(logits(100 * torch.randn(64, 16)) < bound for _ in range(10))
    worst = 1e4 * (products.sign() if norm == "dyt" else products)
    assert logits(worst) == pytest.approx(bound, rel=1e-5)


def test_routers_are_counted_as_training_counts_them():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 50, 8, generator=generator)
    board = RoutingBoard(3, 0.0, 0.0)
    with board.through_layers(0, None) as routing:
        for layer, of_layer in enumerate(logits):
            routing.count(layer, of_layer, of_layer.topk(2).indices)
    totals, seen = board.passes[0].totals(), routers(logits, 2)
    assert seen["balance"] == pytest.approx(totals.balance.item(), rel=1e-6)
    assert seen["z"] == pytest.approx(totals.z.item(), rel=1e-6)
    assert seen["entropy"] == pytest.approx((totals.entropies.sum() / totals.rows.sum()).item(), rel=1e-6)
    assert seen["load_most"] == pytest.approx((totals.choices.max() / (50 * 2 / 8)).item())
    shifted = routers(logits + 5, 2)
    assert shifted["spread"] == pytest.approx(seen["spread"], rel=1e-5) and shifted["z"] > 2 * seen["z"]
    silent = logits.clone()
    silent[..., :2] = -100
    assert routers(silent, 2)["unused"] == 0.25


def test_the_study_of_experts_has_a_line_an_arm_with_the_range_of_its_seeds():
    of_an_arm = arms(2e-3, 0.02, 0.001)
    assert len(of_an_arm) == 8 and Arm(2e-3, "rmsnorm", 0.02, 0.0) in of_an_arm
    figures = dict.fromkeys(("balance", "entropy", "load_most", "unused", "z", "spread", "logit", "bound"), 1.0)
    rows = [{**vars(arm), **figures, "loss": float(seed)} for seed in (1, 2, 6) for arm in of_an_arm]
    lines = table_of_experts(rows)
    assert len(lines) == 2 + 8 and lines[2].startswith("| 0.002 | dyt | 0 | 0 | 3.000 (1.000 to 6.000) | 1.000")
