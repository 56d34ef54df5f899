"""What follows from put, get, list and delete: folders that are whole or not there, growing files, one run a folder."""

from __future__ import annotations

import pytest

from llama_dyt.core import object_store
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.object_store import ObjectStore
from llama_dyt.core.store import MARKER, STORES, at, store_of
from llama_dyt.launch import claim as claims


class Dictionary(ObjectStore):
    """The four functions alone; `acts` are the changes in their order."""

    name = "dictionary"

    def __init__(self):
        self.kept, self.acts = {}, []

    def put(self, address, file):
        self.kept[address] = file.read_bytes()
        self.acts.append(("put", address.rpartition("/")[2]))

    def get(self, address, file):
        if address not in self.kept:
            raise FileNotFoundError(address)
        file.write_bytes(self.kept[address])

    def list(self, address):
        return {
            name: len(content)
            for name, content in self.kept.items()
            if name == address or name.startswith(f"{address}/")
        }

    def delete(self, address):
        self.kept.pop(address, None)
        self.acts.append(("delete", address.rpartition("/")[2]))


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(STORES, "_entries", {})
    return STORES.register(Dictionary())


def make(store, content: str, nonce: str = "0a"):
    """Save a folder of one file."""
    staging = store.stage(at("dictionary://run/step_1"), nonce)
    said = []
    staging.begin(said.append)
    (staging.folder("model") / "weights").write_text(content)
    staging.hand_over()
    assert not list(staging.folder().rglob("weights"))  # no more room is taken than for what is being written
    return staging, said


def test_a_place_reads_like_a_path(store):
    place = at("dictionary://run/") / "metrics.jsonl"
    assert str(place) == "dictionary://run/metrics.jsonl" and place.name == "metrics.jsonl"
    assert not place.exists() and not place.parent.is_dir()
    store.write_text(place, "{}\n")
    assert place.is_file() and place.parent.is_dir() and not place.is_dir()
    assert place.read_text() == "{}\n" and place.stat().st_size == 3
    assert store_of(place) is store and store_of("runs/7") is STORES.get("file")


def test_a_folder_is_there_when_its_marker_is_which_is_put_last_and_goes_first(store):
    staging, said = make(store, "first")
    step = at("dictionary://run/step_1")
    assert not (step / MARKER).is_file() and said == []
    staging.publish("{}", said.append)
    assert store.acts == [("put", "weights"), ("put", MARKER)]
    store.acts.clear()
    staging, said = make(store, "second")
    assert said == [f"{step} was there already, of another course of this run: it is replaced"]
    assert store.acts == [("delete", MARKER), ("delete", "weights"), ("put", "weights")]
    staging.discard()
    assert not store.kept


def test_what_was_published_is_not_discarded(store):
    staging, said = make(store, "all")
    staging.publish("{}", said.append)
    staging.discard()
    assert len(store.kept) == 2


def test_another_process_that_fails_leaves_the_folder_to_the_first(store):
    first, said = make(store, "all")
    other = store.stage(at("dictionary://run/step_1"), "0a")
    (other.folder("model") / "more").write_text("more")
    other.hand_over()
    other.discard()
    first.publish("{}", said.append)
    assert {name.rpartition("/")[2] for name in store.kept} == {"weights", "more", MARKER}


def test_leftovers_without_a_marker_are_removed_and_nothing_else(store):
    make(store, "half")
    store.write_text(at("dictionary://run/tb/events"), "not ours")
    said = []
    store.clear(at("dictionary://run"), lambda name: name.startswith("step"), lambda folder: False, said.append)
    assert list(store.kept) == ["dictionary://run/tb/events"] and len(said) == 1


def test_growing_files_are_put_from_time_to_time_and_before_a_marker(store, monkeypatch):
    store.write_text(at("dictionary://run/metrics.jsonl"), "1\n")
    spool = store.spool(at("dictionary://run"), "metrics.jsonl")
    metrics = spool.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + "2\n")
    spool.sync(now=False)
    assert at("dictionary://run/metrics.jsonl").read_text() == "1\n"
    staging, said = make(store, "all")
    store.acts.clear()
    staging.publish("{}", said.append)
    assert store.acts == [("put", "metrics.jsonl"), ("put", MARKER)]
    monkeypatch.setattr(object_store, "SPOOL_SECONDS", 0.0)
    metrics.write_text("3\n")
    spool.sync(now=False)  # in a thread: what puts takes no time of training
    spool._join()
    assert at("dictionary://run/metrics.jsonl").read_text() == "3\n"
    spool.close()
    assert not spool.folder.exists()


def test_without_a_put_for_new_files_the_later_of_two_runs_learns_it_at_its_save(store, monkeypatch):
    folder = at("dictionary://run")
    claim = claims.take(folder, "pretrain", say=lambda message: None)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(claims, "_held", [])
        other = claims.Claim(folder, claim._records, 1, claims.Holder.this_process("pretrain", {}))
        store.write_text(folder / ".claim.1", (other.holder.to_line() + b"000000000000\n").decode())
        other.check()
        with pytest.raises(CheckpointError, match="is no longer this run's"):
            claim.check()
        other.release()
    claim.release()
    assert not store.kept


def test_a_store_that_does_not_answer_is_told_before_a_run(store, monkeypatch):
    def fail(address):
        raise OSError("no route")

    monkeypatch.setattr(store, "list", fail)
    assert store.why_not_writable(at("dictionary://run")) == "the store dictionary does not answer (no route)"


def test_an_unknown_scheme_is_no_folder(store):
    with pytest.raises(ConfigurationError, match="--load elsewhere://run: unknown store 'elsewhere'"):
        at("elsewhere://run", "load")
