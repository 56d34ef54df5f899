"""The sample corpus: real, deterministic, disjoint, and built once however many ask."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loading import open_text

from llama_dyt.core.errors import DataError
from llama_dyt.data import sample as module
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import open_data
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.sample import VALIDATION_FRACTION, build_sample_corpus, sample_documents
from llama_dyt.data.sample_tokens import prepare_sample
from llama_dyt.data.settings import ValidationSettings
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer, tokenizer_fingerprint
from llama_dyt.data.validation_sets import choose_sets, open_training
from llama_dyt.training.evaluation.baselines import (
    TextCounts,
    count_text,
    gzip_bits_per_byte,
    model_bits_per_byte,
    unigram_bits_per_byte,
)
from tests import forks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_sample_corpus(tmp_path_factory.mktemp("data") / "sample")


def lines(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_corpus_is_in_redpajamas_form_and_large_enough(corpus):
    documents = [values[0] for values, _ in open_text(corpus.train_glob).iterate()]
    assert len(documents) > 200
    assert sum(map(len, documents)) > 3_000_000
    for document in lines(corpus.validation_file):
        assert set(document) == {"text", "meta"}
        assert document["meta"]["source"] in ("python-library", "python-help")


def test_held_out_documents_are_disjoint_from_training_and_chosen_by_hash(corpus):
    train = {values[0] for values, _ in open_text(corpus.train_glob).iterate()}
    held_out = {document["text"] for document in lines(corpus.validation_file)}
    assert len(held_out) >= 10
    assert not train & held_out
    assert all(is_held_out(text, VALIDATION_FRACTION) for text in held_out)
    assert not any(is_held_out(text, VALIDATION_FRACTION) for text in train)


@pytest.mark.parametrize("share", [VALIDATION_FRACTION / 2, VALIDATION_FRACTION, 2 * VALIDATION_FRACTION])
def test_any_share_of_it_can_be_held_out(corpus, share):
    folder = str(corpus.folder.parent)
    (held_out,) = choose_sets("sample", ValidationSettings(validation_freq=1, validation_fraction=share), folder)
    texts = {values[0] for values, _ in held_out.open().iterate()}
    training = open_training("sample", share, ReadOptions(sample_folder=folder))
    assert texts and all(is_held_out(text, share) for text in texts)
    assert not texts & {values[0] for values, _ in training.iterate()}


def test_tokenizer_fits_and_gives_the_corpus_back(corpus):
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    assert len(tokenizer) == module.VOCAB_SIZE == 4096
    texts = [document["text"] for document in lines(corpus.validation_file)]
    encoded = encode_batch(tokenizer, texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert sum(len(text) for text in texts) / sum(map(len, encoded)) > 3


def test_second_call_returns_at_once(corpus):
    before = time.perf_counter()
    assert build_sample_corpus(corpus.folder.parent) == corpus
    assert time.perf_counter() - before < 1.0
    assert open_text("sample", sample_folder=str(corpus.folder.parent)).files


def test_its_tokens_are_those_of_its_text_and_made_once(corpus):
    with ThreadPoolExecutor(2) as pool:  # two that ask at once
        folders = list(pool.map(prepare_sample, [corpus, corpus]))
    assert folders == [corpus.tokens_folder] * 2
    tokens = open_data(corpus.tokens_folder)
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    counts = count_text(open_data(corpus.train_glob), tokenizer)
    assert tokens.num_tokens == counts.num_tokens + counts.num_documents  # each document's BOS
    assert tokens.tokenizer == tokenizer_fingerprint(tokenizer)
    assert sorted(path.name for path in corpus.folder.iterdir()) == [
        ".tokens.lock",
        "tokenizer",
        "tokens",
        "train",
        "validation",
    ]


def test_documents_are_the_same_every_time():
    assert [d["text"] for d in sample_documents()] == [d["text"] for d in sample_documents()]


def test_processes_that_ask_at_once_build_one_corpus_and_leave_nothing_else(tmp_path):
    program = (
        "import sys\n"
        "from llama_dyt.data import sample\n"
        "sample._TOKENIZER_CHARACTERS = 300_000; sample.VOCAB_SIZE = 600\n"
        "documents = list(sample.sample_documents())[:120]\n"
        "sample.sample_documents = lambda: documents\n"
        "sample._LEAST_CHARACTERS = 1000\n"
        "build = sample._build_aside\n"
        "sample._build_aside = lambda target: (print('built'), build(target))\n"
        "sample.build_sample_corpus(sys.argv[1])\n"
    )
    processes = [forks.ForkedProgram(["-c", program, tmp_path / "sample"]) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("built" in output for output in outputs) == 1
    left = [path.name for path in (tmp_path / "sample").iterdir() if not path.name.endswith(".lock")]
    assert left == [build_sample_corpus(tmp_path / "sample").folder.name]


def test_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sample_documents", lambda: iter([{"text": "too little", "meta": {}}]))
    with pytest.raises(DataError, match="too few of its own sources"):
        build_sample_corpus(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be built in") as caught:
        build_sample_corpus(tmp_path / "file" / "sample")
    assert "\n" not in str(caught.value)


def test_baselines_are_what_they_say(corpus):
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    held_out = count_text(open_data(corpus.validation_file), tokenizer)
    texts = [document["text"] for document in lines(corpus.validation_file)]
    assert held_out.num_bytes == sum(len(text.encode()) for text in texts)
    assert held_out.num_documents == len(texts)
    assert held_out.num_tokens == sum(map(len, encode_batch(tokenizer, texts))) + len(texts)
    assert held_out.tokens[tokenizer.eos_token_id] == len(texts)
    unigram = unigram_bits_per_byte(count_text(open_data(corpus.train_glob), tokenizer), held_out)
    assert 2.0 < unigram < 3.5
    assert 1.5 < gzip_bits_per_byte(texts) < 2.6
    # A model that knows nothing is worse than the unigram model, by their definitions.
    import math

    assert model_bits_per_byte(math.log(4096), held_out) > unigram


def test_unigram_of_a_known_distribution():
    import numpy as np

    train = TextCounts(np.array([3, 3, 3, 3]) * 1000 - 1, 1, 1)
    held_out = TextCounts(np.array([1, 1, 1, 1]), 1, 8)
    assert unigram_bits_per_byte(train, held_out) == pytest.approx(1.0)  # 4 tokens of 2 bits in 8 bytes
