"""Hub datasets: streamed by `datasets` itself (from local folders here), and clear at once when the hub is away."""

import json
import time

import pytest
from corpora import write_jsonl, write_parquet
from loading import open_text, token_batches

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats import hub
from llama_dyt.data.formats.hub import HubSource, needs_conversion, plan
from llama_dyt.data.opening import check_data
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer

TEXTS = [f"document {i} " + "word " * (i % 9) for i in range(700)]


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["jsonl", "parquet"])
def folder(request, tmp_path):
    write = write_jsonl if request.param == "jsonl" else write_parquet
    for part in range(2):
        write(tmp_path / "set" / f"train-{part}.{request.param}", TEXTS[part * 350 : (part + 1) * 350])
    return str(tmp_path / "set")


def texts_of(source, position=None):
    return [values[0] for values, _ in source.iterate(position)]


def test_streamed_records_and_every_position(folder):
    source = HubSource(folder)
    records = list(source.iterate())
    assert [values[0] for values, _ in records] == TEXTS
    for i in (0, 1, 254, 255, 256, 349, 350, 512, 698, 699):
        position = json.loads(json.dumps(records[i][1]))
        assert texts_of(HubSource(folder), position) == TEXTS[i + 1 :], i


def test_streamed_dataset_trains_and_resumes_exactly(folder, tokenizer):
    steps = list(token_batches(HubSource(folder), tokenizer, 32, 4, num_epochs=2))
    half = len(steps) // 2
    state = json.loads(json.dumps(steps[half].position))
    rest = list(token_batches(HubSource(folder), tokenizer, 32, 4, num_epochs=2, state=state))
    assert [step.position["tokens"] for step in rest] == [step.position["tokens"] for step in steps[half + 1 :]]
    for step, again in zip(steps[half + 1 :], rest, strict=True):
        assert step.micro_batches[0]["input_ids"].equal(again.micro_batches[0]["input_ids"])


def test_raw_lines_of_a_script_repository_are_parsed_here(tmp_path, monkeypatch):
    """RedPajama's sample: a loading script beside JSON lines whose `meta` differs from slice to slice."""
    first = write_jsonl(tmp_path / "arxiv_sample.jsonl", TEXTS[:300], url="x")
    second = write_jsonl(tmp_path / "c4_sample.jsonl", TEXTS[300:], language={"en": 1})
    monkeypatch.setattr(hub, "probe", lambda name, **_: ["RedPajama-Data-1T-Sample.py", first.name, second.name])
    real_plan = hub.plan

    def local_plan(*arguments):
        chosen = real_plan(*arguments)
        assert chosen["data_files"][0] == "hf://datasets/togethercomputer/RedPajama-Data-1T-Sample/arxiv_sample.jsonl"
        return {**chosen, "data_files": [str(first), str(second)]}

    monkeypatch.setattr(hub, "plan", local_plan)
    source = HubSource("togethercomputer/RedPajama-Data-1T-Sample")
    records = list(source.iterate())
    assert [values[0] for values, _ in records] == TEXTS
    assert texts_of(source, json.loads(json.dumps(records[400][1]))) == TEXTS[401:]


def test_missing_column_is_an_error_naming_what_there_is(tmp_path):
    write_parquet(tmp_path / "set" / "a.parquet", ["x"], column="content")
    with pytest.raises(DataError, match="record 0: has no field 'text' .it has content, meta") as caught:
        texts_of(HubSource(str(tmp_path / "set")))
    assert "\n" not in str(caught.value)


def test_bad_records_are_counted_on_request(tmp_path):
    write_parquet(tmp_path / "set" / "a.parquet", ["one", None, "two"])
    source = HubSource(str(tmp_path / "set"), skip_bad_lines=True)
    assert texts_of(source) == ["one", "two"]
    assert source.bad_lines == 1


def test_plan_for_ordinary_and_script_repositories():
    assert plan("a/b", None, ["data/train.parquet"], None) == {"path": "a/b", "name": None}
    assert plan("a/b", "task", ["data.jsonl"], None) == {"path": "a/b", "name": "task"}
    assert needs_conversion("a/self", ["self.py"])
    assert not needs_conversion("a/self", ["self.py", "x.jsonl"])
    assert not needs_conversion("a/self", ["x.parquet"])
    converted = ["one/train/0000.parquet", "one/train/0001.parquet", "one/test/0000.parquet", "two/train/0000.parquet"]
    assert plan("a/self", "one", ["self.py"], converted) == {
        "path": "parquet",
        "data_files": [f"hf://datasets/a/self@refs/convert/parquet/one/train/000{i}.parquet" for i in range(2)],
    }
    with pytest.raises(DataError, match="several tasks; choose with --task_name one of: one, two"):
        plan("a/self", None, ["self.py"], converted)
    with pytest.raises(DataError, match="no task 'three'"):
        plan("a/self", "three", ["self.py"], converted)
    with pytest.raises(DataError, match="no complete converted `train` split"):
        plan("a/self", "one", ["self.py"], ["one/partial-train/0000.parquet"])


def test_hub_out_of_reach_is_said_at_once(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.hf_api.HfApi.repo_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))
    )
    before = time.perf_counter()
    (problem,) = check_data("togethercomputer/RedPajama-Data-1T-Sample")
    assert time.perf_counter() - before < 15
    assert "the hub cannot be reached (no route)" in problem
    assert "-d sample" in problem
    assert "\n" not in problem
    with pytest.raises(DataError, match="cannot be reached"):
        list(open_text("some/set").iterate())
    with pytest.raises(DataError, match="^tokenizer 'some/model' .* cannot be reached .*--tokenizer"):
        load_tokenizer("some/model")


def test_refused_connection_takes_no_retries(monkeypatch):
    """A real request, to a port where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    before = time.perf_counter()
    with pytest.raises(DataError, match="cannot be reached"):
        hub.probe("some/set")
    assert time.perf_counter() - before < 15


def test_impossible_and_offline_names_are_errors(monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert "neither a local path nor a possible hub name" in check_data("what is this!")[0]
    monkeypatch.setattr(
        "huggingface_hub.hf_api.HfApi.repo_info", lambda *_, **__: (_ for _ in ()).throw(OfflineModeIsEnabled("off"))
    )
    (problem,) = check_data("some/set")
    assert "HF_HUB_OFFLINE" in problem
    assert "\n" not in problem
