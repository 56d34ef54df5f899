"""What a format of a user's own gets by deriving from ours: positions, bad records, settings, and its turn."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from corpora import Tokens, write_jsonl
from loading import open_text, token_batches

from llama_dyt.config.options import option
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.format import FORMATS, FileFormat, Format
from llama_dyt.data.formats.sources import ReadOptions, TokenDocuments
from llama_dyt.data.opening import check_data, open_data


@dataclass(frozen=True)
class TsvSettings:
    """How .tsv files are read."""

    tsv_upper: bool = option(False, "In capitals.")


class Tsv(FileFormat):
    name, suffixes, settings = "tsv", (".tsv",), TsvSettings

    def records(self, path, first, settings):
        for line in path.read_text().splitlines()[first:]:
            if line == "broken":
                raise ValueError("no tab in it")
            text = line.upper() if settings.tsv_upper else line
            yield dict(zip(("text", "meta"), text.split("\t")))


class Pairs(TokenDocuments):
    fingerprint = "pairs:1"

    def documents(self, position=None):
        for row in range(position["row"] if position else 0, 9):
            yield np.array([5 + row, 6], np.int32), {"row": row + 1, "bad_lines": 0}


class Numbers(Format):
    name, is_tokenized = "numbers", True

    def matches(self, dataset):
        return dataset.startswith("numbers:")

    def open(self, dataset, options):
        return Tokens([[1, 5, 2]] * 20) if dataset.endswith("array") else Pairs()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(FORMATS, "_entries", {})
    for format in (Tsv(), Numbers()):
        FORMATS.register(format)


def test_files_of_it_are_read_beside_others_from_every_position_on(tmp_path):
    (tmp_path / "b.TSV").write_text("one\tx\ntwo\tx\nthree\tx\n")
    write_jsonl(tmp_path / "a.jsonl", ["first"])
    write_jsonl(tmp_path / "c.jsonl", ["last"])
    source = open_text(str(tmp_path))
    walk = list(source.iterate())
    assert [values for values, _ in walk] == [("first",), ("one",), ("two",), ("three",), ("last",)]
    for number, (_, after) in enumerate(walk):
        assert list(source.iterate(json.loads(json.dumps(after)))) == walk[number + 1 :]
    assert check_data(str(tmp_path)) == []


def test_its_bad_records_are_told_or_counted_and_its_own_failures_told(tmp_path):
    (tmp_path / "a.tsv").write_text("one\tx\n" * 3 + "\t\n")
    with pytest.raises(DataError, match="a.tsv, record 0: has no field 'body'; its records have text .*--text_field"):
        list(open_text(str(tmp_path), fields=("body",)).iterate())
    counted = open_text(str(tmp_path / "a.tsv"), skip_bad_lines=True, fields=("body",))
    assert list(counted.iterate()) == [] and counted.bad_lines == 4
    (tmp_path / "b.tsv").write_text("one\tx\nbroken\n")
    with pytest.raises(DataError, match="b.tsv, record 1: the format tsv cannot read on .ValueError: no tab in it.;"):
        list(open_text(str(tmp_path / "b.tsv")).iterate())


def test_its_settings_are_part_of_what_a_position_belongs_to(tmp_path):
    (tmp_path / "a.tsv").write_text("one\tx\n")
    plain, upper = (
        open_data(tmp_path, ReadOptions(settings={"tsv": TsvSettings(tsv_upper=chosen)})) for chosen in (False, True)
    )
    assert [values[0] for values, _ in upper.iterate()] == ["ONE"]
    assert plain.fingerprint == open_data(tmp_path).fingerprint != upper.fingerprint


def test_what_takes_a_dataset_as_a_whole_may_give_tokens(tokenizer):
    assert open_data("numbers:array").num_tokens == 60
    (step,) = token_batches("numbers:array", tokenizer, 60, 1)
    assert step.micro_batches[0]["input_ids"].tolist() == [[1, 5, 2] * 20]
    (step,) = token_batches("numbers:stream", tokenizer, 8, 9)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert step.micro_batches[0]["input_ids"][0].tolist() == [bos, 5, 6, eos, bos, 6, 6, eos]


def test_a_suffix_that_is_read_already_is_refused():
    for suffix, name in ((".jsonl.gz", "jsonl"), (".tsv", "tsv")):
        mine = type("Mine", (Tsv,), {"name": "mine", "suffixes": (".mine", suffix)})()
        with pytest.raises(ConfigurationError, match=f"{suffix} files are read by the format '{name}' already; let"):
            FORMATS.register(mine)
