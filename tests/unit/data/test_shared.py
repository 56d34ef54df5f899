"""A stream's files in shares: which rank reads which, what a step holds, and going on with other numbers of ranks."""

import json

import pytest
from corpora import Tokens, write_jsonl
from loading import token_batches

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.file_source import FileSource
from llama_dyt.data.opening import Order, open_data
from llama_dyt.data.order.shared_sequences import whole_position

LENGTH, ROWS, STEPS = 16, 8, 9


@pytest.fixture
def folder(tmp_path):
    for number in range(6):  # of 20 to 70 tokens a document, so that shares are through at different times
        write_jsonl(
            tmp_path / "set" / f"{number}.jsonl", [f"file {number} line {line} " * (number + 1) for line in range(9)]
        )
    return tmp_path / "set"


def steps_of(folder, tokenizer, dp_size, shares, count=STEPS, state=None, **options):
    """(rows of each step over all ranks, the whole position after each)."""
    given = {"order": Order(shares=shares, **options)}
    loaders = [
        token_batches(str(folder), tokenizer, LENGTH, ROWS // dp_size, 1, rank, dp_size, state=state, **given)
        for rank in range(dp_size)
    ]
    rows, positions = [], []
    for _ in range(count):
        steps = [next(loader) for loader in loaders]
        rows.append([row for step in steps for row in step.micro_batches[0]["input_ids"].tolist()])
        told = [step.position for step in steps]
        wholes = [whole_position(own, lambda own, told=told: told) for own in told]
        positions.append(json.loads(json.dumps(wholes[0])))
        assert all(whole["sources"][""]["shares"] == wholes[0]["sources"][""]["shares"] for whole in wholes)
    for loader in loaders:
        loader.close()
    return rows, positions


@pytest.mark.parametrize("shuffle", ["none", "documents"])
def test_what_is_in_a_step_does_not_depend_on_the_ranks_and_is_gone_on_with_by_others(folder, tokenizer, shuffle):
    options = {"shuffle": shuffle, "shuffle_buffer": 4}
    alone, positions = steps_of(folder, tokenizer, 1, 2, **options)
    assert len({tuple(row) for rows in alone for row in rows}) > ROWS * STEPS // 2
    for dp_size in (2, 4):
        assert steps_of(folder, tokenizer, dp_size, 2, **options)[0] == alone
    for after, dp_size in ((0, 4), (4, 2), (7, 1)):
        rest, _ = steps_of(folder, tokenizer, dp_size, 2, STEPS - after - 1, positions[after], **options)
        assert rest == alone[after + 1 :]


def test_a_rank_opens_the_files_of_its_own_shares_alone(folder, tokenizer, monkeypatch):
    read = []

    def spy(self, position, real=FileSource._from):
        files, place, bad_lines = real(self, position)
        read.extend(file.name for file in files)
        return files, place, bad_lines

    monkeypatch.setattr(FileSource, "_from", spy)
    loader = token_batches(str(folder), tokenizer, LENGTH, 4, 1, 1, 2, order=Order(shares=2))
    next(loader)
    loader.close()
    assert {*read} == {"1.jsonl", "3.jsonl", "5.jsonl"}


def test_a_share_that_is_through_begins_again_and_epochs_are_those_of_the_last(folder, tokenizer):
    _, positions = steps_of(folder, tokenizer, 2, 2, 40)
    (source,) = positions[-1]["sources"].values()
    assert all(share["epoch"] >= 1 for share in source["shares"])
    assert source["epochs"] == min(share["epoch"] for share in source["shares"])


def test_shares_that_cannot_be_are_told(folder, tokenizer, tmp_path):
    with pytest.raises(ConfigurationError, match="--stream_shares 3 does not divide the global batch of 8 sequences"):
        steps_of(folder, tokenizer, 1, 3)
    with pytest.raises(DataError, match="set: has 6 files, and --stream_shares is 8; give as many at most"):
        steps_of(folder, tokenizer, 1, 8)
    with pytest.raises(ConfigurationError, match="--stream_shares 2 is for one dataset of text"):
        token_batches(Tokens([[5] * 9]), tokenizer, LENGTH, 8, order=Order(shares=2))
    _, positions = steps_of(folder, tokenizer, 1, 2, 1)
    with pytest.raises(
        DataError, match="was read in another order: shuffling was none, 2 shares, now it is none; give"
    ):
        token_batches(str(folder), tokenizer, LENGTH, 8, state=positions[0])
    assert open_data(str(folder)).can_be_shared
