import json

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.presets import get_model, read_model
from llama_dyt.models.spec import FAMILIES

LLAMA = FAMILIES.get("llama")


def get_size(name):
    return get_model(name).size


def dyt_parameters(size):
    """Counted by hand: every DyT has a weight a channel and one alpha, and the embedding one scale."""
    attention = 2 * size.hidden_size**2 + 2 * size.hidden_size * size.num_key_value_heads * size.head_dim
    layer = attention + 3 * size.hidden_size * size.intermediate_size + 2 * (size.hidden_size + 1)
    return 2 * size.vocab_size * size.hidden_size + 1 + size.num_layers * layer + size.hidden_size + 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("7b", 6_738_415_682), ("13b", 13_015_864_402), ("34b", 33_743_970_402), ("70b", 68_976_648_354)],
)
def test_the_papers_sizes_have_the_papers_parameter_counts(name, parameters):
    assert dyt_parameters(get_size(name)) == parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama1_7b", 6.74), ("llama1_13b", 13.02), ("llama1_30b", 32.53), ("llama1_65b", 65.29), ("llama3_8b", 8.03)],
)
def test_the_released_sizes_have_their_published_counts(name, billions):
    assert dyt_parameters(get_size(name)) / 1e9 == pytest.approx(billions, abs=0.01)


def test_every_size_can_be_built():
    for name, size in LLAMA.presets.items():
        assert size.hidden_size % size.num_heads == 0, name
        assert size.head_dim % 2 == 0, name
        assert size.num_heads % size.num_key_value_heads == 0, name


def test_every_alias_leads_to_a_size():
    names = {**LLAMA.preset_aliases, **LLAMA.preset_spellings}
    assert set(names.values()) <= set(LLAMA.presets)
    assert not set(names) & set(LLAMA.presets)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("7b", "llama2_7b"),
        ("13b", "llama2_13b"),
        ("70b", "llama2_70b"),
        ("30b", "llama1_30b"),
        ("65b", "llama1_65b"),
        ("llama_7b", "llama1_7b"),
        ("LLaMA-2-7B", "llama2_7b"),
        ("llama3-8b", "llama3_8b"),
        ("1.4b", "llama2_1.4b"),
    ],
)
def test_names_in_other_forms_are_understood(alias, name):
    assert get_size(alias) is LLAMA.presets[name]


def test_llama1_is_2048_tokens_long_and_llama3_rotates_slower():
    assert get_size("llama1_7b").max_length == 2048
    assert (get_size("llama3_8b").rope_theta, get_size("llama3_8b").vocab_size) == (500_000, 128256)


def test_unknown_size_names_the_nearest():
    with pytest.raises(ConfigurationError, match=r"unknown model size 'lama2_7b': did you mean 'llama2_7b'"):
        get_size("lama2_7b")


def test_config_file_gives_a_size(tmp_path):
    fields = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "vocab_size": 99,
        "max_position_embeddings": 77,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    size = get_size(str(tmp_path / "config.json"))
    assert size == read_model(tmp_path).size
    assert (size.num_layers, size.num_key_value_heads, size.vocab_size, size.max_length) == (3, 2, 99, 77)
    assert size.rope_theta == 1e6


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 64}'])
def test_unusable_config_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match="config.json"):
        get_size(str(tmp_path))


def test_absent_config_file_is_told_from_an_unknown_name():
    with pytest.raises(ConfigurationError, match="no such file"):
        get_size("nowhere/config.json")


def test_figures_by_hand_replace_the_sizes_own():
    size = get_size("7b").with_overrides(hidden_width=512, num_heads=8, num_layers=2)
    assert (size.hidden_size, size.num_heads, size.num_layers, size.intermediate_size) == (512, 8, 2, 11008)
    assert size.num_key_value_heads == 8, "every head of 7b has its own keys and values"
    assert get_size("70b").with_overrides(num_heads=32).num_key_value_heads == 8
