"""Runs on what the hub has, by the real clients against a hub on this machine that throttles, fails and cuts."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llama_dyt.data.formats.shards import open_shards
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, run_two_at_once
from tests.forks import ROOT
from tests.hub_server import HUB_HERE, TOKEN, Hub, Repository, serving

REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"
TOKENIZER = "hf-internal-testing/llama-tokenizer"


def lines(texts, **more) -> bytes:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def repositories(corpus, tmp_path_factory) -> dict:
    """The corpus in the layouts of RedPajama's sample, of C4 and of parquet; its tokenizer as the default one."""
    there = tmp_path_factory.mktemp("hub")
    texts = [json.loads(line)["text"] for line in corpus.train.read_text().splitlines()]
    (there / "redpajama").mkdir()
    (there / "redpajama" / "RedPajama-Data-1T-Sample.py").write_text("raise SystemExit('nobody runs this')")
    slices = ("arxiv", "book", "c4", "cc_2023-06", "github")
    for number, name in enumerate(slices):  # `meta` of one slice is unlike another's, which one schema refuses
        content = lines(texts[number :: len(slices)], meta={"url": name} if number % 2 else {"id": [number]})
        (there / "redpajama" / f"{name}_sample.jsonl").write_bytes(content)
    packed = there / "redpajama" / "github_sample.jsonl"
    packed.with_name(f"{packed.name}.zst").write_bytes(zstandard.compress(packed.read_bytes()))
    packed.unlink()
    (there / "c4" / "en").mkdir(parents=True)
    names = ["en", "realnewslike"]
    configs = [{"config_name": name, "data_files": f"{name}/c4-train.*.json.gz"} for name in names]
    (there / "c4" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    for number in range(8):
        content = lines(texts[number::8] * 4, timestamp="2019", url="u")
        (there / "c4/en" / f"c4-train.{number:05d}-of-00008.json.gz").write_bytes(gzip.compress(content))
    (there / "parquet" / "data").mkdir(parents=True)
    for number in range(4):
        file = there / "parquet/data" / f"train-{number:05d}-of-00004.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts[number::4]}), file, row_group_size=16)
    shutil.copytree(corpus.tokenizer, there / "tokenizer")
    return {
        ("datasets", REDPAJAMA): Repository(there / "redpajama"),
        ("datasets", "allenai/c4"): Repository(there / "c4"),
        ("datasets", "someone/parquet"): Repository(there / "parquet"),
        ("datasets", "someone/gated"): Repository(there / "parquet", "gated"),
        ("datasets", "someone/closed"): Repository(there / "parquet", "closed"),
        ("models", TOKENIZER): Repository(there / "tokenizer"),
        ("models", "someone/gated"): Repository(there / "tokenizer", "gated"),
    }


@pytest.fixture
def hub(repositories, monkeypatch, tmp_path):
    (tmp_path / "hub_here.py").write_text(HUB_HERE)
    with serving(Hub(repositories)) as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield hub
        assert not hub.unknown


def pretrain(corpus, folder, processes: int = 1, **flags):
    words = corpus.pretrain_flags(**{"import": "hub_here", "max_steps": 6, "save_interval": 3, **flags})
    outcome = Command("pretrain", words, folder, "srun" if processes > 1 else "python", processes=processes).run()
    assert outcome.status == 0, outcome.stderr
    return [record["loss"] for record in read_metrics(folder / flags["save_dir"] / "metrics.jsonl")]


def test_the_default_dataset_is_streamed_and_gone_on_with_exactly(corpus, hub, tmp_path):
    hub.faults += [("/api/datasets/.*Sample", 429), ("/tree/", 500), ("GET .*resolve/main/arxiv_sample", "cut")]
    default = {"dataset": None, "tokenizer": None}  # what is not given is the default's
    whole = pretrain(corpus, tmp_path, save_dir="whole", **default)
    rest = pretrain(corpus, tmp_path, save_dir="rest", load="whole/step_00000003", **default)
    assert len(whole) == 6 and rest == whole[3:] and not hub.faults
    assert any(f"/{REDPAJAMA}/resolve/main/arxiv_sample.jsonl" in path for path in hub.asked)
    assert any(f"/{TOKENIZER}/" in path for path in hub.asked)
    assert "RedPajama-Data-1T-Sample.py" not in hub.sent  # a loading script is not even fetched


def test_machines_prepare_their_shares_of_the_hub(corpus, hub, tmp_path):
    flags = ["-d", "someone/parquet", "--tokenizer", corpus.tokenizer, "--import", "hub_here", "-j", "1"]

    def machine(rank):
        words = [*flags, "-o", "of_two", "--rank", str(rank), "--world_size", "2"]
        return Command("prepare_data", words, tmp_path, "srun", processes=2, only_rank=rank)

    outcomes = run_two_at_once(machine(0), machine(1))
    read = [{name for name in hub.sent_to[f"rank{rank}"] if name.endswith(".parquet")} for rank in range(2)]
    assert all(outcome.status == 0 for outcome in outcomes), outcomes[0].stderr + outcomes[1].stderr
    first = "data/train-00000-of-00004.parquet"  # where the client looks what columns there are
    assert read[0] == {first, "data/train-00002-of-00004.parquet"}
    assert read[1] - {first} == {f"data/train-0000{number}-of-00004.parquet" for number in (1, 3)}
    lines = corpus.train.read_text(encoding="utf-8").splitlines()
    assert open_shards(tmp_path / "of_two").num_documents == len(lines)


@pytest.mark.matrix
def test_each_rank_reads_its_share_of_the_hub_and_goes_on_exactly(corpus, hub, tmp_path):
    asked = {"dataset": "allenai/c4", "task_name": "en", "stream_shares": 2, "max_length": 256}
    whole = pretrain(corpus, tmp_path, 2, save_dir="whole", **asked)
    shards = [name for name in hub.sent if name.endswith(".gz")]
    first = "en/c4-train.00000-of-00008.json.gz"  # where the client looks what columns there are
    read = [{name for name in hub.sent_to[f"rank{rank}"] if name in shards} - {first} for rank in range(2)]
    assert read[0] and read[1] and not read[0] & read[1], read
    rest = pretrain(corpus, tmp_path, 2, save_dir="rest", load="whole/step_00000003", **asked)
    assert len(whole) == 6 and rest == whole[3:]


CHECK = """
import json, sys
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import check_data, open_text
from llama_dyt.models.hub_folder import hub_folder
asked = json.loads(sys.argv[1])
told = [[str(problem) for problem in check_data(name, ReadOptions(task=task))] for name, task in asked]
for name in ("someone/gated", "someone/missing"):
    try:
        hub_folder(name, ["*.json"], "model_path")
    except ConfigurationError as error:
        told.append(error.problems)
source = open_text("someone/parquet", ReadOptions())
records = list(source.iterate())
rest = list(open_text("someone/parquet", ReadOptions()).iterate(json.loads(json.dumps(records[20][1]))))
told.append([len(records), [values for values, _ in rest] == [values for values, _ in records[21:]]])
c4 = ReadOptions(task="en")
records = list(open_text("allenai/c4", c4).share(1, 4).iterate())
rest = list(open_text("allenai/c4", c4).share(1, 4).iterate(json.loads(json.dumps(records[40][1]))))
told.append([len(records), [values for values, _ in rest] == [values for values, _ in records[41:]]])
print(json.dumps(told))
"""


def test_what_the_hub_does_not_give_is_one_line_and_a_share_is_read_alone(corpus, hub, tmp_path):
    asked = [
        ("someone/gated", None),
        ("someone/missing", None),
        ("allenai/c4", None),
        ("allenai/c4", "fr"),
        ("someone/closed", None),
    ]
    env = os.environ | {"HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(asked)], env=env, capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stderr
    gated, missing, parts, no_part, closed, gated_model, missing_model, parquet, share = json.loads(found.stdout)
    assert gated == ["--dataset 'someone/gated' needs permission; ask for it on its hub page and run `hf auth login`"]
    assert len(missing) == 1 and "is neither a local path nor on the hub (or it is private)" in missing[0]
    assert parts == ["--dataset 'allenai/c4' has several parts; choose with --task_name one of: en, realnewslike"]
    assert no_part == ["--dataset 'allenai/c4' has no part 'fr'; choose with --task_name one of: en, realnewslike"]
    assert closed == []  # with the token
    assert len(gated_model) == 1 and "--model_path someone/gated: it needs permission: ask for it" in gated_model[0]
    assert len(missing_model) == 1 and "none of that name on the hub" in missing_model[0]
    assert parquet[0] > 30 and parquet[1]
    assert share[0] > 40 and share[1]
    shards = {int(name[len("en/c4-train.") :][:5]) for name in hub.sent if name.endswith(".gz")}
    assert shards == {0, 1, 5}  # those of the share, and the first, where the client looks what columns there are
