"""RedPajama-Data-1T as it lies on the hub: a loading script, which nobody runs, and lists of addresses of its files."""

from __future__ import annotations

import json

import pytest
import zstandard

from llama_dyt.data.formats.shards import open_shards
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, run_two_at_once
from tests.hub_server import HUB_HERE, Hub, Repository, serving

NAME = "togethercomputer/RedPajama-Data-1T"
SLICES = ("arxiv", "c4")


@pytest.fixture
def hub(corpus, tmp_path, monkeypatch):
    texts = [json.loads(line)["text"] for line in corpus.train.read_text().splitlines()]
    (tmp_path / "hub_here.py").write_text(HUB_HERE)
    (tmp_path / "repository/urls").mkdir(parents=True)
    (tmp_path / "repository/RedPajama-Data-1T.py").write_text("raise SystemExit('nobody runs this')")
    with serving(Hub({("datasets", NAME): Repository(tmp_path / "repository")}, web=tmp_path / "web")) as hub:
        for number, name in enumerate(SLICES):
            (hub.web / name).mkdir(parents=True)
            addresses = []
            for part in range(2):
                mine = texts[2 * number + part :: 4]
                content = "".join(json.dumps({"text": text, "meta": {name: [part]}}) + "\n" for text in mine).encode()
                packed = (content, ".jsonl") if part else (zstandard.compress(content), ".dedup.jsonl.zst")
                (hub.web / name / f"{name}_{part}{packed[1]}").write_bytes(packed[0])
                addresses.append(f"{hub.url}/web/{name}/{name}_{part}{packed[1]}\n")
            (tmp_path / f"repository/urls/{name}.txt").write_text("".join(addresses))
        for name, value in (hub.environment(tmp_path / "home") | {"CACHES": str(tmp_path / "caches")}).items():
            monkeypatch.setenv(name, value)
        yield hub
        assert not hub.unknown and "RedPajama-Data-1T.py" not in hub.sent


def fetched(folder, rank: int) -> set[str]:
    return {path.name for path in (folder / f"caches/rank{rank}").rglob("*_*.jsonl*")}


def pretrain(corpus, folder, processes, **flags):
    flags |= {"dataset": NAME, "stream_shares": 2, "import": "hub_here", "max_steps": 6, "save_interval": 3}
    flags |= {"batch_size": 2 // processes, "max_length": 128}
    words = corpus.pretrain_flags(**flags)
    outcome = Command("pretrain", words, folder, "srun" if processes > 1 else "python", processes=processes).run()
    assert outcome.status == 0, outcome.stderr
    return [record["loss"] for record in read_metrics(folder / flags["save_dir"] / "metrics.jsonl")]


def test_lists_are_streamed_by_two_machines_and_gone_on_with_exactly_by_one(corpus, hub, tmp_path):
    hub.faults += [
        ("/resolve/main/urls/arxiv", 429),
        ("GET /web/arxiv/arxiv_0", "cut"),
        ("GET /web/arxiv/arxiv_1", 503),
    ]
    whole = pretrain(corpus, tmp_path, 2, save_dir="whole")
    assert not hub.faults and hub.ranges
    shares = fetched(tmp_path, 0), fetched(tmp_path, 1)
    assert shares[0] and shares[1] and not shares[0] & shares[1], shares  # each machine its files, not the whole
    rest = pretrain(corpus, tmp_path, 1, save_dir="rest", load="whole/step_00000003")
    assert len(whole) == 6 and rest == pytest.approx(whole[3:], rel=1e-6)  # sums of two ranks, or of one


def test_machines_prepare_their_shares_of_lists(corpus, hub, tmp_path):
    flags = ["-d", NAME, "--tokenizer", corpus.tokenizer, "--import", "hub_here", "-j", "1"]

    def machine(rank: int, of: int, folder: str) -> Command:
        words = [*flags, "-o", folder, "--rank", str(rank), "--world_size", str(of)]
        return Command("prepare_data", words, tmp_path, "srun", processes=2, only_rank=rank)

    (hub.web / "c4/c4_1.jsonl").rename(tmp_path / "away")
    outcome = machine(0, 1, "of_one").run()
    assert outcome.status == 2 and len(outcome.errors) == 1
    assert f"{NAME}: urls/c4.txt, line 2: {hub.url}/web/c4/c4_1.jsonl: the server has no such file" in outcome.stderr
    assert not (tmp_path / "of_one").exists()
    (tmp_path / "away").rename(hub.web / "c4/c4_1.jsonl")
    outcomes = run_two_at_once(machine(0, 2, "of_two"), machine(1, 2, "of_two"))
    assert all(outcome.status == 0 for outcome in outcomes), outcomes[0].stderr + outcomes[1].stderr
    prepared = open_shards(tmp_path / "of_two")
    assert prepared.num_documents == len(corpus.train.read_text().splitlines())
