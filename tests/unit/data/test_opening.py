"""What a dataset's name means: whatever the format, a run sees the same tokens; and what is validated on."""

import pytest
from corpora import write_jsonl
from loading import counted, loader_options, token_batches
from prepared import write_megatron

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.opening import Order, check_data, is_countable, open_sources, tokenizer_beside
from llama_dyt.data.preparing.prepare import prepare
from llama_dyt.data.preparing.settings import PrepareSettings
from llama_dyt.data.settings import ValidationSettings
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.validation_sets import ValidationSet, choose_sets

TEXTS = [f"def area_{number}(width):\n    return {number} * width" * (1 + number % 4) for number in range(60)]
FRACTION = 0.3


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """The same documents as text, as shards, as Arrow and as Megatron's files."""
    root = tmp_path_factory.mktemp("formats")
    write_jsonl(root / "text" / "a.jsonl", TEXTS)
    tokenizer.save_pretrained(root / "tokenizer")
    for kind, fraction in (("shards", 0.0), ("arrow", 0.0), ("split", FRACTION)):
        settings = PrepareSettings(
            dataset=str(root / "text"),
            output_path=str(root / kind),
            tokenizer=str(root / "tokenizer"),
            format="arrow" if kind == "arrow" else "shards",
            validation_fraction=fraction,
            num_workers=1,
        )
        prepare(settings, show_progress=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = encode_batch(tokenizer, TEXTS)
    (root / "megatron").mkdir()
    write_megatron(root / "megatron" / "a_text_document", [[[bos, *row.tolist(), eos]] for row in ids])
    (root / "no_eos").mkdir()
    write_megatron(root / "no_eos" / "a_text_document", [[[bos, *row.tolist()]] for row in ids])
    (root / "mixture.yaml").write_text("sources: {prepared: {path: split, epochs: 1}, text: {path: text, epochs: 1}}")
    return root


def rows_of(dataset, tokenizer, **options):
    with token_batches(dataset, tokenizer, 32, 2, **options) as batches:
        return [batch["input_ids"].tolist() for step in batches for batch in step.micro_batches]


@pytest.mark.parametrize("kind", ["shards", "arrow", "megatron"])
def test_prepared_data_give_the_tokens_of_the_text(folders, tokenizer, kind):
    text, prepared = (rows_of(str(folders / name), tokenizer, num_epochs=2) for name in ("text", kind))
    assert prepared == text
    counts = [counted(str(folders / name), tokenizer, 32, 2, num_epochs=2) for name in ("text", kind)]
    assert counts[0] == counts[1]
    assert is_countable(str(folders / kind)) and check_data(str(folders / kind)) == []


def test_the_held_out_split_is_what_streaming_holds_out(folders, tokenizer):
    streamed = rows_of(str(folders / "text"), tokenizer, held_out_fraction=FRACTION)
    assert rows_of(str(folders / "split"), tokenizer) == streamed
    (prepared,) = choose_sets(str(folders / "split"), ValidationSettings(validation_freq=5))
    (text,) = choose_sets(str(folders / "text"), ValidationSettings(validation_freq=5, validation_fraction=FRACTION))
    prepared.check()
    assert rows_of(prepared.open(), tokenizer) == rows_of(text.open(), tokenizer)


def test_the_tokenizer_beside_prepared_data_is_found(folders):
    for name in ("split", "mixture.yaml"):
        assert tokenizer_beside(str(folders / name)) == str(folders / "split" / "tokenizer")
    assert tokenizer_beside(str(folders / "text")) is None


def test_every_source_of_a_mixture_is_validated_on_its_own(folders):
    mixture = str(folders / "mixture.yaml")
    assert choose_sets(mixture, ValidationSettings()) == []
    with_split = ValidationSet("prepared", str(folders / "split"), split="validation")
    assert choose_sets(mixture, ValidationSettings(validation_freq=1)) == [with_split]
    of_both = choose_sets(mixture, ValidationSettings(validation_freq=1, validation_fraction=0.1))
    assert of_both == [with_split, ValidationSet("text", str(folders / "text"), 0.1)]
    named = choose_sets("elsewhere", ValidationSettings(validation_freq=1, validation_dataset=mixture))
    assert named == [with_split, ValidationSet("text", str(folders / "text"))]


def test_nothing_to_validate_on_is_an_error(folders):
    for name in ("text", "shards"):
        with pytest.raises(ConfigurationError, match="--validation_freq 5: nothing to validate on; give"):
            choose_sets(str(folders / name), ValidationSettings(validation_freq=5))
    for name in ("shards", "arrow", "megatron"):  # of tokens no share can be held out any more
        with pytest.raises(ConfigurationError, match="--validation_freq 5: nothing to validate on; give"):
            choose_sets(str(folders / name), ValidationSettings(validation_freq=5, validation_fraction=0.1))


def test_a_share_of_prepared_data_cannot_be_held_out_any_more(folders, tokenizer):
    with pytest.raises(ConfigurationError, match="--validation_fraction 0.1 .* give it to prepare_data.py"):
        open_sources(str(folders / "shards"), tokenizer, loader_options(held_out_fraction=0.1))
    open_sources(str(folders / "mixture.yaml"), tokenizer, loader_options(held_out_fraction=0.1))


def test_documents_that_do_not_end_are_warned_about(folders, tokenizer):
    warnings = {}
    for name in ("megatron", "no_eos", "shards", "text"):
        (source,) = open_sources(str(folders / name), tokenizer, loader_options())
        warnings[name] = source.data.warning(tokenizer.eos_token_id)
    assert "do not end with EOS" in warnings.pop("no_eos")
    assert set(warnings.values()) == {None}


def test_streams_are_not_shuffled_by_sequences(folders, tokenizer):
    for name in ("text", "arrow"):
        with pytest.raises(ConfigurationError, match="is read as a stream, whose sequences cannot be shuffled"):
            open_sources(str(folders / name), tokenizer, loader_options(order=Order(0, "sequences")))
    shuffled = rows_of(str(folders / "arrow"), tokenizer, order=Order(1, "documents"))
    assert shuffled == rows_of(str(folders / "text"), tokenizer, order=Order(1, "documents"))
    assert shuffled != rows_of(str(folders / "text"), tokenizer)


def test_a_folder_that_is_not_whole_is_told_before_a_run(folders, tmp_path):
    (tmp_path / ".journal_00000_of_00001").mkdir()
    (tmp_path / ".journal_00000_of_00001" / "settings.json").write_text("{}")
    (problem,) = check_data(str(tmp_path))
    assert "prepared in part" in problem
    with pytest.raises(DataError, match="prepared in part"):
        open_sources(str(tmp_path), None, loader_options())


def test_problems_say_which_flag_and_value_they_are_about(folders, tmp_path):
    """Once each, whether the error names the dataset itself, a file in it, or neither."""
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "mixture.yaml").write_text("sources: {one: {path: a.jsonl}}")
    wrong = f"{tmp_path}/a.jsonl, line 1: field 'text' is int, not a string"
    for dataset, begins in (
        (f"{tmp_path}/a.jsonl", wrong),
        (f"{tmp_path}", wrong),
        (f"{tmp_path}/*.jsonl", f"{tmp_path}/*.jsonl: {wrong}"),
        (f"{tmp_path}/mixture.yaml", f"{tmp_path}/mixture.yaml: sources: one: {wrong}"),
        (f"{folders}/nothing.jsonl", f"{folders}/nothing.jsonl: no such file or folder"),
    ):
        (problem,) = check_data(dataset, flag="validation_dataset")
        assert (problem.flag, problem.value, problem.local) == ("validation_dataset", dataset, True)
        assert problem.startswith(f"--validation_dataset {begins}")
