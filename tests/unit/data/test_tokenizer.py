"""Tokenizers load from wherever they lie, give text back to the letter, and survive the export."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.tokenizing import tokenizer as module
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    tokenizer_fingerprint,
    train_sentencepiece,
)

CODE = "    if x:\n\treturn  [1,\r\n\n\n        2]   # ünï 漢字 😀\x00\x1f  \n"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
@example(CODE)
@example("  leading and trailing  ")
@example(" ")
@example("<s>not special</s><unk>")
def test_text_comes_back_to_the_letter(tokenizer, text):
    (ids,) = encode_batch(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} & set(ids.tolist())


def test_own_sources_come_back_to_the_letter(tokenizer):
    text = Path(module.__file__).read_text()
    assert tokenizer.decode(encode_batch(tokenizer, [text])[0]) == text


def test_ids_are_llamas(tokenizer):
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 2, 330)


def test_ids_equal_sentencepieces_own(tokenizer):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=f"{tokenizer.name_or_path}/tokenizer.model")
    for text in (CODE, "  two spaces", "plain words 123", "\n\n", ""):
        assert encode_batch(tokenizer, [text])[0].tolist() == processor.encode(text)


def test_training_is_deterministic(tmp_path):
    texts = [Path(module.__file__).read_text()]
    for name in "ab":
        train_sentencepiece(texts, tmp_path / name, 400)
    for file in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_too_little_text_for_the_vocabulary_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no SentencePiece model of 4096 pieces"):
        train_sentencepiece(["too short"], tmp_path / "t", 4096)


def test_every_way_to_name_a_tokenizer_gives_the_same(tmp_path, tokenizer):
    trained = Path(tokenizer.name_or_path)
    (tmp_path / "spm").mkdir()
    shutil.copy(trained / "tokenizer.model", tmp_path / "spm" / "tokenizer.model")
    shutil.copy(trained / "tokenizer.model", tmp_path / "odd-name.model")
    tokenizer.save_pretrained(tmp_path / "step_00000010" / "model")
    (tmp_path / "step_00000010" / "model" / "config.json").write_text('{"model_type": "llama_dyt"}')
    expected = encode_batch(tokenizer, [CODE])[0].tolist()
    for name in (
        trained,
        tmp_path / "spm",
        tmp_path / "spm" / "tokenizer.model",
        tmp_path / "odd-name.model",
        tmp_path / "step_00000010",
        tmp_path / "step_00000010" / "model",
        tmp_path / "step_00000010" / "model" / "tokenizer.json",
    ):
        loaded = load_tokenizer(name)
        assert encode_batch(loaded, [CODE])[0].tolist() == expected, name
        assert loaded.decode(expected) == CODE
        assert (loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (1, 2, 330)
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_exported_tokenizer_loads_equal_offline_without_this_package(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    program = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = t(sys.argv[2])['input_ids']; assert t.decode(ids, skip_special_tokens=True) == sys.argv[2]; print(ids)"
    )
    text = CODE.replace("\x00", "")  # no NUL in a command line
    done = subprocess.run([sys.executable, "-c", program, tmp_path, text], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([1, *encode_batch(tokenizer, [text])[0].tolist()])


def test_llamas_kind_of_sentencepiece_with_dummy_prefix_loads(tmp_path):
    import sentencepiece

    text = Path(module.__file__).read_text()
    (tmp_path / "llama").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(tmp_path / "llama" / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    loaded = load_tokenizer(tmp_path / "llama")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "llama" / "tokenizer.model"))
    for line in ("def f(x):", "return x  # 漢", "a\n\tb"):
        assert encode_batch(loaded, [line])[0].tolist() == processor.encode(line)
        assert loaded.decode(processor.encode(line)) == line


def test_missing_and_broken_tokenizers_are_one_line_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    for name in (
        "nowhere/at/all",
        tmp_path / "nowhere",
        tmp_path / "empty",
        tmp_path / "broken",
        tmp_path / "broken.model",
    ):
        with pytest.raises(DataError) as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)
        assert str(name) in str(caught.value)
        assert "--tokenizer" in str(caught.value)


def test_tokenizer_without_eos_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path)


def test_vocabulary_check(tokenizer):
    check_vocabulary(tokenizer, 330, exact=True)
    check_vocabulary(tokenizer, 384)
    with pytest.raises(ConfigurationError, match="330 pieces but the model's vocabulary is 329"):
        check_vocabulary(tokenizer, 329)
    with pytest.raises(ConfigurationError, match="--tokenizer"):
        check_vocabulary(tokenizer, 384, exact=True)


def test_truncation_stored_in_a_tokenizer_loses_no_tokens(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    other = load_tokenizer(tmp_path)
    other.backend_tokenizer.enable_truncation(3)
    other.backend_tokenizer.enable_padding()
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
    assert encode_batch(other, ["a longer text than three", ""])[0].tolist() == (
        encode_batch(tokenizer, ["a longer text than three"])[0].tolist()
    )
    assert len(encode_batch(other, ["a longer text than three", ""])[1]) == 0


def test_slow_tokenizers_encode_the_same_way():
    """A tokenizer without a fast backend goes through its own call."""

    class Slow:
        is_fast = False

        def __call__(self, texts, **arguments):
            assert arguments["add_special_tokens"] is False
            assert arguments["split_special_tokens"] is True
            return {"input_ids": [[len(text)] for text in texts]}

    assert [row.tolist() for row in encode_batch(Slow(), ["a", "bcd"])] == [[1], [3]]
