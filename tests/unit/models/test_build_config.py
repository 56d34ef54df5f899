"""From a name or a file to a config, and everything that can be wrong on the way."""

import json

import pytest
from model_cases import tiny_config
from transformers import LlamaConfig
from transformers.utils import is_flash_attn_2_available

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, build_model, count_parameters


@pytest.mark.parametrize(
    ("name", "dyt", "scalars"),
    # The authors' counts; a plain LLaMA has no alpha (two a layer and the last) and no embedding scale.
    [
        ("7b", 6_738_415_682, 66),
        ("13b", 13_015_864_402, 82),
        ("34b", 33_743_970_402, 98),
        ("70b", 68_976_648_354, 162),
    ],
)
def test_parameter_counts_are_the_authors(name, dyt, scalars):
    assert count_parameters(build_config(name)) == dyt
    assert count_parameters(build_config(name, norm="rmsnorm")) == dyt - scalars


@pytest.mark.parametrize(
    ("name", "alphas"),
    [("7b", (0.8, 0.2, 0.2)), ("13b", (0.6, 0.15, 0.15)), ("34b", (0.2, 0.05, 0.05)), ("70b", (0.2, 0.05, 0.05))],
)
def test_named_sizes_start_from_the_papers_alphas(name, alphas):
    config = build_config(name)
    assert (config.attn_alpha_init_value, config.ffn_alpha_init_value, config.dec_alpha_init_value) == alphas
    assert config.norm_type == "dyt" and config.embedding_scale is True


def test_rmsnorm_is_the_plain_llama():
    config = build_config("llama3_8b", norm="rmsnorm")
    assert config.embedding_scale is False and config.attn_alpha_init_value is None
    assert (config.vocab_size, config.rope_parameters["rope_theta"]) == (128256, 500_000.0)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (32, 8, 8192)
    assert not config.tie_word_embeddings


def test_given_values_win():
    config = build_config("7b", attn_alpha_init_value=1, dec_alpha_init_value=0.9, embedding_scale=False, vocab_size=77)
    alphas = (config.attn_alpha_init_value, config.ffn_alpha_init_value, config.dec_alpha_init_value)
    assert alphas == (1, 0.2, 0.9) and config.embedding_scale is False and config.vocab_size == 77
    assert build_config("7b", rope_theta=5e5, rms_norm_eps=1e-6).rope_parameters["rope_theta"] == 5e5


def test_none_leaves_a_field_alone():
    assert build_config("7b", vocab_size=None, hidden_size=None).vocab_size == 32000


def test_what_is_derived_follows_a_width_given_by_hand():
    config = build_config("7b", hidden_size=2048, num_attention_heads=16)
    assert (config.head_dim, config.num_key_value_heads, config.attn_alpha_init_value) == (128, 16, 1.0)
    assert build_config("70b", num_attention_heads=32).num_key_value_heads == 8


@pytest.fixture
def llama_folder(tmp_path):
    LlamaConfig(
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_hidden_layers=3,
        intermediate_size=300,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        attention_bias=True,
        eos_token_id=[5, 6],
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("as_file", [False, True])
def test_a_llama_folder_gives_a_dyt_config_of_its_shape(llama_folder, as_file):
    config = build_config(llama_folder / "config.json" if as_file else llama_folder, norm="dyt")
    assert (config.model_type, config.norm_type, config.attn_alpha_init_value) == ("llama_dyt", "dyt", 1.0)
    assert config.ffn_alpha_init_value == 0.5 and config.embedding_scale is True
    assert (config.num_key_value_heads, config.num_hidden_layers, config.head_dim) == (4, 3, 128)
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    assert config.attention_bias and config.eos_token_id == [5, 6] and config.dtype is None


def test_a_file_keeps_its_own_norm_where_none_is_asked_for(llama_folder, tmp_path):
    assert build_config(llama_folder).norm_type == "rmsnorm"
    for norm in ("dyt", "rmsnorm"):
        tiny_config(norm).save_pretrained(tmp_path / norm)
        assert build_config(tmp_path / norm).norm_type == norm


def test_a_saved_models_alphas_stay_until_norm_or_width_change(tmp_path):
    tiny_config(attn_alpha_init_value=0.33, embedding_scale=False).save_pretrained(tmp_path)
    again = build_config(tmp_path)
    assert again.attn_alpha_init_value == 0.33 and again.embedding_scale is False
    assert build_config(tmp_path, hidden_size=8192, num_attention_heads=64).attn_alpha_init_value == 0.2
    plain = build_config(tmp_path, norm="rmsnorm")
    assert plain.attn_alpha_init_value is None and plain.embedding_scale is False


def test_an_old_config_file_with_rope_theta_at_the_top(tmp_path):
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    fields |= {"intermediate_size": 96, "rope_theta": 12345.0, "rope_scaling": None, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = build_config(tmp_path)
    assert config.rope_parameters["rope_theta"] == 12345.0 and config.num_key_value_heads == 4
    assert build_config(tmp_path, rope_theta=99.0).rope_parameters["rope_theta"] == 99.0


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("9x9b",), {}, "9x9b"),
        (("llama2_7",), {}, "llama2_7b"),
        (("/no/such/config.json",), {}, "/no/such/config.json"),
        (("7b", "groupnorm"), {}, "groupnorm.*dyt, .*rmsnorm"),
        (("7b",), {"hiden_size": 64}, "hiden_size.*hidden_size"),
        (("7b",), {"hidden_size": 100}, "100 does not divide by num_attention_heads 32"),
        (("7b",), {"num_key_value_heads": 5}, "num_attention_heads 32 does not divide by num_key_value_heads 5"),
        (("7b",), {"hidden_size": 96}, "3, is odd"),
        (("7b",), {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (("7b",), {"vocab_size": -3}, "vocab_size is -3"),
        (("7b",), {"attn_alpha_init_value": 0.0}, "attn_alpha_init_value is 0"),
        (("7b",), {"attn_alpha_init_value": -1}, "attn_alpha_init_value is -1"),
    ],
)
def test_wrong_input_is_named_with_its_value(arguments, overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        build_config(*arguments, **overrides)


def test_all_that_does_not_fit_is_told_at_once():
    with pytest.raises(ConfigurationError) as error:
        build_config("7b", hidden_size=100, num_key_value_heads=5)
    assert len(error.value.problems) == 2


def test_flash_attention_that_is_not_installed_says_so():
    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed here")
    with pytest.raises(ConfigurationError, match="flash_attention_2.*requirements-cuda.txt"):
        build_model(build_config("15m", attn_implementation="flash_attention_2"))


def test_another_kind_of_model_is_refused(tmp_path):
    fields = {"model_type": "gpt2", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"intermediate_size": 96}))
    with pytest.raises(ConfigurationError, match="'gpt2'.*llama, llama_dyt"):
        build_config(tmp_path)


def test_a_broken_config_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="config.json"):
        build_config(tmp_path)
