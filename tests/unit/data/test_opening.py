"""What -d may mean beyond one dataset: mixtures are opened source by source, and their problems told together."""

from fractions import Fraction

import pytest
from corpora import Tokens, write_jsonl

from llama_dyt.data.loader import TokenBatches
from llama_dyt.data.opening import check_data, is_countable, open_data, open_feeds
from llama_dyt.errors import ConfigurationError


@pytest.fixture
def mixture(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} {i}" for i in range(9)])
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "sources:\n  a: {path: a.jsonl, weight: 2, epochs: 2, shuffle: documents}\n  b: {path: ./b.jsonl}\n"
    )
    return path


def test_a_mixtures_sources_are_opened_with_their_own_epochs_and_order(mixture, tokenizer):
    a, b = open_feeds(str(mixture), tokenizer, num_epochs=7, shuffle="none", held_out_fraction=0.1)
    assert (a.name, a.weight, a.num_epochs, a.shuffle) == ("a", Fraction(2), 2, "documents")
    assert (b.name, b.weight, b.num_epochs, b.shuffle) == ("b", Fraction(1), None, "none")
    assert a.held_out_fraction == b.held_out_fraction == 0.1
    assert not a.is_array and len(list(a.data.iterate())) == 9


def test_a_mixture_is_trained_on_by_weight_from_its_file(mixture, tokenizer):
    with TokenBatches(str(mixture), tokenizer, 8, 3) as batches:
        steps = [next(batches) for _ in range(4)]
    assert steps[3].sources["a/sequences"] == 8 and steps[3].sources["b/sequences"] == 4
    assert steps[3].position["sequences"] == 12


def test_problems_of_a_mixture_name_its_source(mixture, tmp_path):
    assert check_data(str(mixture)) == []
    (tmp_path / "b.jsonl").write_text("{broken\n")
    (tmp_path / "a.jsonl").unlink()
    first, second = check_data(str(mixture))
    assert first.startswith(f"{mixture}: sources: a: ") and "no such file" in first
    assert second.startswith(f"{mixture}: sources: b: ") and "not valid JSON" in second
    assert check_data(str(mixture), num_epochs=2)[0].endswith("leave --num_epochs out")
    assert check_data(str(tmp_path / "absent.yaml")) == [
        f"{tmp_path / 'absent.yaml'}: no such file; give a mixture, or a dataset itself"
    ]


def test_only_what_ends_can_be_counted(mixture, tmp_path):
    assert not is_countable(str(mixture))
    mixture.write_text("sources: {a: {path: a.jsonl, epochs: 1}}")
    assert is_countable(str(mixture)) and is_countable(str(tmp_path / "a.jsonl"))
    assert not is_countable("owner/name")


def test_all_that_does_not_fit_is_told_together(tokenizer):
    feeds = [*open_feeds(Tokens([[5] * 4]), tokenizer), *open_feeds(Tokens([[5] * 4]), tokenizer)]
    assert len(open_feeds(feeds, tokenizer)) == 2
    bad = [Tokens([[5]], tokenizer="x"), Tokens([[5]], vocab_size=1000)]
    with pytest.raises(ConfigurationError) as caught:
        open_feeds([type(feeds[0])(str(i), data) for i, data in enumerate(bad)], tokenizer)
    assert len(caught.value.problems) == 2
    assert open_data(bad[0]) is bad[0]
