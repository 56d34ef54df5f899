"""Whether a change left every number as it was: a fixed set of small runs on CPU, written down and compared.

    python scripts/same_numbers.py --write before.json       on the commit before
    python scripts/same_numbers.py --compare before.json     on the one after, on the same machine and versions

It drives the entries from outside alone, by command lines and the files they leave, so it runs on any commit whatever
is moved in between. The set (`plan`): text prepared in several ways, every plugin and layout twice (another precision,
norm, accumulation and validation the second time), what changes a step, every order of the data, fine-tuning,
resuming, generating, dry runs. Of each run it keeps all that is logged but what is measured by the clock, the SHA-256
of every tensor of the last checkpoint, that of Adam's state, the place in the data, the random states and the names of
files; of prepared data the SHA-256 of every file; of the other entries what they print. Equal means to the last bit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import shlex
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from tests.cli.entries import Command, Outcome  # noqa: E402

MEASURED = re.compile(r"seconds|per_second|tflops|mfu|memory|data_wait")
"""Metrics that another run of the same code has otherwise; their names are kept, their values are not."""

MODEL = "--num_heads 4 --num_key_value_heads 2 --intermediate_size 96 --max_length 32 --warmup_steps 1 --lr 1e-2"
COMMON = f"{MODEL} --tokenizer tokens/tokenizer --tensorboard_dir none"
WIDE = f"{COMMON} --hidden_width 64 --num_layers 4 --batch_size 4 --dataset tokens --max_steps 3"
NARROW = f"{COMMON} --hidden_width 32 --num_layers 1 --batch_size 1 --plugin ddp --mixed_precision fp32"
"""One sequence a step, so that each loss tells which one it was."""
PLANNED = f"{COMMON} -c 7b -d tokens --dry_run --dry_run_processes 16 --max_steps 9 --batch_size 4 -x bf16"
SYNTHETIC = f"{MODEL} --hidden_width 64 --num_layers 2 -c 15m --num_steps 3 --ignore_steps 1"
TUNED = "--max_length 64 --batch_size 4 --plugin zero2 --mixed_precision fp32 --lr 1e-2 --tensorboard_dir none"

HYBRID = "--plugin hybrid_parallel"
LAYOUTS: dict[str, tuple[int, str]] = {
    **{f"{name}-{size}": (size, f"--plugin {name}") for name in ("ddp", "zero2", "fsdp", "gemini") for size in (1, 2)},
    **{f"{name}-2": (2, f"--plugin {name}") for name in ("zero1", "zero2_cpu", "fsdp_cpu", "gemini_auto")},
    "hsdp-4": (4, "--plugin hsdp --shard_size 2"),
    "gemini-frac": (2, "--plugin gemini --shard_param_frac 0.5 --offload_optim_frac 0.5"),
    "gemini-offload": (2, "--plugin gemini --offload_optim_frac 1 --offload_param_frac 1"),
    "gemini-tp2": (2, "--plugin gemini --tp 2"),
    "gemini-tp2-4": (4, "--plugin gemini --tp 2"),
    "gemini-dp2": (4, "--plugin gemini --extra_dp 2"),
    "gemini_auto-tp2": (2, "--plugin gemini_auto --tp 2"),
    "hybrid-1": (1, HYBRID),
    "hybrid-2": (2, HYBRID),
    "hybrid-zero1": (2, f"{HYBRID} --zero 1"),
    "hybrid-zero2": (2, f"{HYBRID} --zero 2"),
    "hybrid-tp2": (2, f"{HYBRID} --tp 2"),
    "hybrid-pp2": (2, f"{HYBRID} --pp 2"),
    "hybrid-tp2-pp2": (4, f"{HYBRID} --tp 2 --pp 2"),
    "hybrid-tp2-zero1": (4, f"{HYBRID} --tp 2 --zero 1"),
    "hybrid-pp2-zero1": (4, f"{HYBRID} --pp 2 --zero 1"),
    "hybrid-split_gather": (2, f"{HYBRID} --tp 2 --sp_mode split_gather"),
    "hybrid-split_gather-zero2": (4, f"{HYBRID} --tp 2 --zero 2 --sp_mode split_gather"),
    "hybrid-split_gather-pp2": (4, f"{HYBRID} --tp 2 --pp 2 --sp_mode split_gather"),
    "hybrid-sp2": (2, f"{HYBRID} --sp 2"),
    "hybrid-sp4": (4, f"{HYBRID} --sp 4"),
    "hybrid-sp2-zero1": (4, f"{HYBRID} --sp 2 --zero 1"),
    "hybrid-tp2-sp2": (4, f"{HYBRID} --tp 2 --sp 2"),
    "hybrid-pp2-sp2": (4, f"{HYBRID} --pp 2 --sp 2"),
    "interleaved": (2, f"{HYBRID} --pp 2 --pp_style interleaved"),
    "interleaved-split_gather": (4, f"{HYBRID} --tp 2 --pp 2 --pp_style interleaved --sp_mode split_gather"),
    "zbv": (2, f"{HYBRID} --pp 2 --pp_style zbv"),
    "zbv-tp2": (4, f"{HYBRID} --tp 2 --pp 2 --pp_style zbv"),
    "zbv-zero1": (4, f"{HYBRID} --pp 2 --pp_style zbv --zero 1"),
    "zbv-sp2": (4, f"{HYBRID} --pp 2 --pp_style zbv --sp 2"),
    "hybrid_cpu-tp2": (2, "--plugin hybrid_parallel_cpu --tp 2"),
    "hybrid_cpu-pp2": (2, "--plugin hybrid_parallel_cpu --pp 2"),
    "hybrid_cpu-zero2": (2, "--plugin hybrid_parallel_cpu --zero 2"),
}
"""(processes, flags) of each."""

PREPARED = {
    "tokens": "-d text --train_tokenizer 320 --validation_fraction 0.1 -j 1",
    "two-workers": "-d text --tokenizer tokens/tokenizer --validation_fraction 0.1 -j 2",
    "limited": "-d text/a.jsonl --tokenizer tokens/tokenizer --max_num_tokens 3000 -j 1",
    "bare": "-d text --tokenizer tokens/tokenizer --no-add_bos --no-add_eos -j 1",
    "arrow": "-d text --tokenizer tokens/tokenizer --format arrow -j 1",
    "compressed": "-d zipped --tokenizer tokens/tokenizer -j 2",
    "columns": "-d columns --text_field body --tokenizer tokens/tokenizer -j 1",
    "skipped": "-d bad.jsonl --skip_bad_lines --tokenizer tokens/tokenizer -j 1",
    "halves": "-d text --tokenizer tokens/tokenizer --world_size 2 --rank {0,1} -j 1",
    "few": "-d few.jsonl --tokenizer tokens/tokenizer -j 1",
}

STEPS = {
    "gradient_checkpoint": "--gradient_checkpoint",
    "selective_checkpointing": "--selective_checkpointing 1/2 --norm rmsnorm",
    "flash_attention": "--flash_attention --mixed_precision bf16",
    "documents_apart": "--reset_position_ids --reset_attention_mask --max_length 64",
    "positions_reset": "--reset_position_ids --max_length 64 --validation_freq 2 --validation_batches 2",
    "z_loss": "--z_loss 1e-3",
    "alphas": "--attn_alpha_init_value 0.3 --ffn_alpha_init_value 0.6 --dec_alpha_init_value 0.9",
    "no_decay": "--no-decay_all_parameters --weight_decay 0.3",
    "no_clipping": "--gradient_clipping 0",
    "clipped": "--gradient_clipping 0.05",
    "fp8": "--fp8 --fp8_emulate --fp8_keep_layers 1 --mixed_precision bf16",
    "fp8_rowwise": "--fp8 rowwise --fp8_emulate --mixed_precision bf16",
    "fp32_gradients": "--fp32_gradients --mixed_precision bf16 --gradient_accumulation_steps 2",
    "fp16": "--mixed_precision fp16",
    "seed": "--seed 7",
    "quadratic": "--lr_scheduler quadratic",
    "linear": "--lr_scheduler linear",
    "constant": "--lr_scheduler constant",
    "tied": "--config tied.json",
}
"""What changes a step, under zero2 on two processes."""

ORDERS = {
    "text": "-d text",
    "text-thread": "-d text --num_workers 0",
    "text-two-workers": "-d text --num_workers 2",
    "text-documents": "-d text --shuffle documents --shuffle_buffer 20",
    "text-held-out": "-d text --validation_fraction 0.2 --validation_freq 6 --validation_batches 3",
    "text-validation": "-d text/a.jsonl --validation_dataset text/b.jsonl --validation_freq 6 --validation_batches 3",
    "field": "-d columns --text_field body",
    "compressed": "-d zipped",
    "glob": "-d 'text/*.jsonl'",
    "skipped": "-d bad.jsonl --skip_bad_lines",
    "tokens": "-d tokens",
    "tokens-documents": "-d tokens --shuffle documents",
    "tokens-sequences": "-d tokens --shuffle sequences --validation_freq 6 --validation_batches 3",
    "arrow": "-d arrow",
    "arrow-documents": "-d arrow --shuffle documents",
    "megatron": "-d megatron/corpus",
    "megatron-sequences": "-d megatron --shuffle sequences",
    "mixture": "-d mixture.yaml --validation_freq 6 --validation_batches 2",
    "mixture-documents": "-d mixture.yaml --shuffle documents --shuffle_buffer 20",
}
"""Each is also broken off in the middle and resumed."""


@dataclass(frozen=True)
class Run:
    """One start of an entry and what is kept of it; `keep(folder, outcome)` makes a JSON object."""

    name: str
    entry: str
    flags: str
    keep: Callable[[Path, Outcome], dict]
    processes: int = 1


def plan() -> list[list[Run]]:
    """The runs, in phases: what a run reads was made in a phase before."""
    prepare = [
        Run(f"prepare/{name}{suffix}", "prepare_data", f"{flags} -o {name}{suffix}", keep_prepared(name + suffix))
        for name, whole in PREPARED.items()
        for suffix, flags in per_rank(whole)
    ]
    layouts = []
    for name, (processes, flags) in LAYOUTS.items():
        half_only = "gemini" in flags or "_cpu --" in flags or "hybrid" in flags and "--zero" in flags
        first, second = ("bf16", "fp16") if half_only else ("fp32", "bf16")
        more = "--norm rmsnorm --gradient_accumulation_steps 2 --validation_freq 2 --validation_batches 2"
        layouts.append(trained(f"layout/{name}/{first}", f"{WIDE} {flags} -x {first}", processes))
        layouts.append(trained(f"layout/{name}/{second}", f"{WIDE} {flags} -x {second} {more}", processes))
    zero2 = f"{WIDE} --plugin zero2 --mixed_precision fp32"
    steps = [trained(f"step/{name}", f"{zero2} {flags}", 2) for name, flags in STEPS.items()]
    narrow = f"{NARROW} --max_steps 12 --save_interval 6"
    orders = [trained(f"order/{name}", f"{narrow} {flags}") for name, flags in ORDERS.items()]
    epochs = [
        trained("order/epochs", f"{NARROW} -d few.jsonl --num_epochs 2 --shuffle documents --batch_size 3"),
        trained("order/epochs-tokens", f"{NARROW} -d few --num_epochs 3 --shuffle sequences"),
        trained("order/two-ranks", f"{narrow} -d mixture.yaml --batch_size 2 --gradient_accumulation_steps 2", 2),
        trained("order/sample", f"{narrow.replace('--tokenizer tokens/tokenizer', '')} -d sample --shuffle sequences"),
    ]
    straight = {name: (LAYOUTS[name][0], f"{WIDE} {LAYOUTS[name][1]} -x bf16 --save_interval 2") for name in RESUMED}
    whole = [trained(f"whole/{name}", flags, size) for name, (size, flags) in straight.items()]
    resumed = [
        *(resume(f"whole/{name}", f"resumed/{name}", 2, flags, size) for name, (size, flags) in straight.items()),
        resume("whole/ddp-2", "resumed/ddp-2-under-fsdp", 2, straight["fsdp-2"][1], 2),
        resume("whole/hybrid-tp2", "resumed/hybrid-tp2-under-zero2", 2, straight["zero2-2"][1], 2),
        *(resume(f"order/{name}", f"resumed/{name}", 6, f"{narrow} {flags}") for name, flags in ORDERS.items()),
    ]
    start = {norm: f"{TUNED} --model_path layout/ddp-1/{x}" for norm, x in (("dyt", "fp32"), ("rmsnorm", "bf16"))}
    tuned_flags = f"{start['dyt']} -d prompts.jsonl --save_interval 4"
    finetuned = [
        trained("finetuned/dyt", tuned_flags, entry="finetune"),
        trained("finetuned/rmsnorm", f"{start['rmsnorm']} -d prompts.jsonl --num_epochs 2", 2, "finetune"),
        trained("finetuned/swapped", f"{start['rmsnorm']} --norm dyt -d prompts.jsonl", entry="finetune"),
        trained(
            "finetuned/held-out",
            f"{start['dyt']} -d prompts.jsonl --validation_fraction 0.2 --validation_freq 4 --parse_special_tokens",
            entry="finetune",
        ),
        trained("order/from-weights", f"{TUNED} -d tokens --max_steps 2 --model_path order/tokens"),
    ]
    asked = "--model_path layout/ddp-1/fp32 --prompt 'the ' --max_new_tokens 16"
    last = [
        resume("finetuned/dyt", "resumed/finetuned", 4, tuned_flags, entry="finetune"),
        Run("generate/greedy", "generate", f"{asked} --temperature 0", keep_printed),
        Run("generate/drawn", "generate", f"{asked} --seed 3", keep_printed),
        *(
            Run(f"dry_run/{name}", "pretrain", f"{PLANNED} {flags}", keep_figures)
            for name, (_, flags) in LAYOUTS.items()
            if name.endswith(("-2", "-4", "zero1", "pp2", "gather"))
        ),
    ]
    benchmarked = [
        Run(
            f"benchmark/{name}",
            "benchmark",
            f"{SYNTHETIC} {flags} --json {name}.result",
            keep_benchmark(f"{name}.result"),
            2,
        )
        for name, flags in BENCHMARKED.items()
    ]
    return [
        prepare[:1],
        prepare[1:],
        [*layouts, *steps, *orders, *epochs, *whole, *benchmarked],
        [*resumed, *finetuned],
        last,
    ]


RESUMED = ("ddp-2", "zero1-2", "zero2-2", "gemini-2", "gemini_auto-2", "fsdp-2", "hybrid-tp2", "hybrid-zero1", "zbv")
"""Layouts that are broken off after their second step and resumed."""


BENCHMARKED = {
    "zero2": "--plugin zero2",
    "gemini": "--norm rmsnorm --plugin gemini --gradient_checkpoint",
    "tp2": f"{HYBRID} --tp 2 --selective_checkpointing 1/2",
}


def per_rank(flags: str) -> list[tuple[str, str]]:
    """(suffix of a name, flags) for each machine that prepares."""
    if "{0,1}" not in flags:
        return [("", flags)]
    return [(f"-{rank}", flags.replace("{0,1}", rank)) for rank in "01"]


def trained(name: str, flags: str, processes: int = 1, entry: str = "pretrain") -> Run:
    return Run(name, entry, f"{flags} --save_dir {name}", keep_training(name), processes)


def resume(source: str, name: str, step: int, flags: str, processes: int = 1, entry: str = "pretrain") -> Run:
    return trained(name, f"{flags} --load {source}/step_{step:08d}", processes, entry)


def keep_training(name: str) -> Callable[[Path, Outcome], dict]:
    def keep(folder: Path, _: Outcome) -> dict:
        lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        checkpoint = max((folder / name).glob("step_*"))
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        files = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
        return {
            "metrics": [{k: None if MEASURED.search(k) else v for k, v in json.loads(line).items()} for line in lines],
            "weights": dict(tensors(checkpoint / "model")),
            "optimizer": sha(json.dumps(sorted(tensors(checkpoint / "optimizer"))).encode()),
            "position": state["position"],
            "rng": sha(json.dumps(state["rng"], sort_keys=True).encode()),
            "checkpoint": checkpoint.name,
            "files": sorted(file for file in files if not file.endswith(".py")),
        }

    return keep


def keep_prepared(name: str) -> Callable[[Path, Outcome], dict]:
    def keep(folder: Path, _: Outcome) -> dict:
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file() and path.name[0] != ".")
        return {str(path.relative_to(folder / name)): sha(path.read_bytes()) for path in files}

    return keep


def keep_printed(_: Path, outcome: Outcome) -> dict:
    return {"printed": outcome.stdout.splitlines()}


def keep_benchmark(file: str) -> Callable[[Path, Outcome], dict]:
    def keep(folder: Path, _: Outcome) -> dict:
        result = json.loads((folder / file).read_text(encoding="utf-8"))["result"]
        same = ("description", "tokens_a_step", "model_flops_per_token", "hardware_flops_per_token")
        return {"losses": [step["loss"] for step in result["steps"]], **{name: result[name] for name in same}}

    return keep


def keep_figures(_: Path, outcome: Outcome) -> dict:
    """What a dry run says beside its flags: parameters, steps, memory."""
    return {"figures": [line for line in outcome.stdout.splitlines() if line.startswith("#")]}


def tensors(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, SHA-256 of dtype, shape and bytes) of every tensor in a folder's safetensors files."""
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        body = data[8 + length :]
        for name, entry in sorted(json.loads(data[8 : 8 + length]).items()):
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, sha(f"{entry['dtype']}{entry['shape']}".encode() + body[start:end])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def write_inputs(folder: Path) -> None:
    """The texts, prompts, mixture and config that the runs read; the same ones always."""
    rng = random.Random(0)
    words = ["".join(rng.choice("etaoinshrdlucmfw") for _ in range(rng.randint(2, 8))) for _ in range(400)]

    def texts(count: int) -> list[str]:
        return [" ".join(rng.choices(words, k=rng.randint(5, 60))) for _ in range(count)]

    def lines(field: str, texts: list[str]) -> str:
        return "".join(json.dumps({field: text}) + "\n" for text in texts)

    for name in ("text", "zipped", "columns", "megatron"):
        (folder / name).mkdir()
    for name in "ab":
        (folder / "text" / f"{name}.jsonl").write_text(lines("text", texts(60)))
        with gzip.open(folder / "zipped" / f"{name}.jsonl.gz", "wt") as file:
            file.write(lines("text", texts(40)))
    (folder / "columns" / "c.jsonl").write_text(lines("body", texts(60)))
    (folder / "few.jsonl").write_text(lines("text", texts(6)))
    bad = lines("text", texts(40)).splitlines(keepends=True)
    (folder / "bad.jsonl").write_text("".join(bad[:3] + ["{broken\n"] + bad[3:]))
    pairs = [{"prompt": f"thing {n}: ", "completion": " ".join(rng.choices(words, k=n % 5 + 1))} for n in range(32)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "mixture.yaml").write_text(
        "sources:\n"
        "  a: {path: text/a.jsonl, weight: 5, validation: few.jsonl}\n"
        "  zipped: {path: zipped, weight: 2, shuffle: documents, validation: few.jsonl}\n"
        "  tokens: {path: tokens, weight: 3.5, shuffle: sequences}\n"
        "  few: {path: few.jsonl, weight: 4/3, epochs: 1, validation: few.jsonl}\n"
    )
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    tied = {"model_type": "llama", **sizes, "num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": True}
    (folder / "tied.json").write_text(json.dumps(tied))
    documents = [[rng.randrange(3, 320) for _ in range(rng.randint(5, 90))] + [2] for _ in range(50)]
    write_megatron(folder / "megatron" / "corpus", documents)


def write_megatron(stem: Path, documents: list[list[int]]) -> None:
    """Megatron-LM's indexed_dataset: a header, lengths, byte offsets and document ends, beside uint16 tokens."""
    sizes = [len(document) for document in documents]
    starts = [2 * sum(sizes[:number]) for number in range(len(sizes))]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(sizes), len(sizes) + 1)
    ends = struct.pack(f"<{len(sizes) + 1}q", *range(len(sizes) + 1))
    index = header + struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(sizes)}q", *starts) + ends
    stem.with_suffix(".idx").write_bytes(index)
    stem.with_suffix(".bin").write_bytes(b"".join(struct.pack(f"<{len(d)}H", *d) for d in documents))


def run_all(folder: Path, jobs: int, only: str) -> dict[str, dict]:
    """What is kept of every run whose name the expression `only` finds, by name, and of those that it reads from."""
    write_inputs(folder)

    def one(run: Run) -> dict:
        started = time.monotonic()
        launcher = "srun" if run.processes > 1 else "python"
        try:
            outcome = Command(run.entry, shlex.split(run.flags), folder, launcher, run.processes).run()
            kept = {"failed": outcome.errors[-12:]} if outcome.status else run.keep(folder, outcome)
        except AssertionError as error:  # it did not end
            kept = {"failed": str(error).splitlines()[-12:]}
        print(f"{run.name}: {'FAILED' if 'failed' in kept else 'ran'}, {time.monotonic() - started:.1f} s", flush=True)
        return kept

    found: dict[str, dict] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for phase in chosen(plan(), only):
            found.update(zip([run.name for run in phase], pool.map(one, phase)))
    return found


def chosen(phases: list[list[Run]], only: str) -> list[list[Run]]:
    """The runs that `only` finds, all that prepare data, and those whose checkpoints they read."""
    read: set[str] = set()
    kept = []
    for phase in reversed(phases):
        kept.insert(0, [run for run in phase if run.name in read or re.search(f"^prepare/|{only}", run.name)])
        read |= {word.partition("/step_")[0] for run in kept[0] for word in shlex.split(run.flags)}
    return kept


def differences(before, after, where: str = "") -> Iterator[tuple[str, float]]:
    """(place, relative difference) of every value that differs; infinite where they are no numbers."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after)):
            yield from differences(*pair, f"{where}[{number}]")
    elif before != after:
        numbers = all(type(value) in (int, float) for value in (before, after))
        yield where, abs(before - after) / max(abs(before), abs(after)) if numbers else float("inf")


def compare(before: dict[str, dict], after: dict[str, dict]) -> int:
    """Print each run that differs and return how many do."""
    num_different = 0
    for name, kept in after.items():
        found = list(differences(before.get(name), kept))
        if not found:
            continue
        num_different += 1
        largest = max((size for _, size in found if size < float("inf")), default=0.0)
        places = ", ".join(place for place, _ in found[:6]) + (" …" if len(found) > 6 else "")
        print(f"DIFFERS {name}: {len(found)} values, numbers by at most {largest:.3g} (relative): {places}")
        for line in kept.get("failed", []):
            print(f"    {line}")
    print(f"{len(after) - num_different} of {len(after)} runs are the same to the last bit")
    return num_different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", metavar="FILE", help="run all and write the numbers here")
    what.add_argument("--compare", metavar="FILE", help="run all and compare with these; status 1 where any differ")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="runs whose names it finds, such as '^(layout|step)/'"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default 2)")
    parser.add_argument(
        "--folder", type=Path, help="an empty folder for what the runs write (default: a temporary one)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same_numbers-") as temporary:
        folder = arguments.folder or Path(temporary)
        after = run_all(folder.resolve(), arguments.jobs, arguments.only)
    if arguments.write:
        Path(arguments.write).write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
        failed = [name for name, kept in after.items() if "failed" in kept]
        print(f"{len(after)} runs in {arguments.write}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
        return int(bool(failed))
    return int(compare(json.loads(Path(arguments.compare).read_text(encoding="utf-8")), after) > 0)


if __name__ == "__main__":
    sys.exit(main())
