"""Each family is transformers' own where its norm is: into this program and out of it, in training too."""

from __future__ import annotations

import json

import pytest
import torch
from model_cases import TINY, tokens
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, count_parameters, empty_model, load_pretrained, save_config
from llama_dyt.models.spec import family_of

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {
    "llama": (LlamaForCausalLM, LlamaConfig(**TINY)),
    "llama, tied, biases": (
        LlamaForCausalLM,
        LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "code llama's theta": (
        LlamaForCausalLM,
        LlamaConfig(**TINY, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    ),
    "llama 3.1's positions": (LlamaForCausalLM, LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE)),
    "linear positions": (
        LlamaForCausalLM,
        LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ),
    "yarn": (LlamaForCausalLM, LlamaConfig(**TINY, rope_parameters=YARN_ROPE)),
    "dynamic positions, beyond their number": (
        LlamaForCausalLM,
        LlamaConfig(
            **{**TINY, "max_position_embeddings": 16},
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        ),
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**TINY, sliding_window=7)),
    "mistral without a window": (MistralForCausalLM, MistralConfig(**TINY, sliding_window=None)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**TINY, head_dim=32)),
    "mistral, wider heads": (MistralForCausalLM, MistralConfig(**{**TINY, "hidden_size": 66}, head_dim=24)),
    "gemma, untied": (GemmaForCausalLM, GemmaConfig(**TINY, head_dim=32, tie_word_embeddings=False)),
    "gemma, one key head": (GemmaForCausalLM, GemmaConfig(**{**TINY, "num_key_value_heads": 1}, head_dim=24)),
    # Its balancing loss is asked of transformers' class by another flag: `test_mixtral.py`.
    "mixtral": (MixtralForCausalLM, MixtralConfig(**TINY, num_local_experts=4, router_aux_loss_coef=0.0)),
    "mixtral, a window, three of five": (
        MixtralForCausalLM,
        MixtralConfig(**TINY, num_local_experts=5, num_experts_per_tok=3, router_aux_loss_coef=0.0, sliding_window=7),
    ),
    "phi": (PhiForCausalLM, PhiConfig(**TINY, partial_rotary_factor=0.5)),
    "phi, linear positions": (
        PhiForCausalLM,
        PhiConfig(
            **TINY,
            rope_parameters={
                "rope_type": "linear",
                "rope_theta": 1e4,
                "factor": 2.0,
                "partial_rotary_factor": 0.25,
            },
        ),
    ),
    "phi-2's share of a head": (
        PhiForCausalLM,
        PhiConfig(**{**TINY, "hidden_size": 80, "num_key_value_heads": 4}, partial_rotary_factor=0.4),
    ),
}
CLOSE = {"rtol": 0, "atol": 1e-5}


def made(case: str) -> torch.nn.Module:
    """transformers' model, no parameter left at the 0 or 1 that would hide a mistake."""
    kind, config = PLAIN[case]
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("case", PLAIN)
def test_it_comes_in_trains_and_leaves_as_transformers_own(tmp_path, case):
    theirs, ids = made(case), tokens()
    theirs.save_pretrained(tmp_path / "in")
    ours = load_pretrained(tmp_path / "in").eval()
    assert type(ours).__module__.startswith("llama_dyt.")
    assert ours.config.norm_type == family_of(ours.config).plain_norm
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, **CLOSE)

    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (theirs, ours)]
    for model in (theirs, ours):
        loss_of(model, ids).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )
    for optimizer in optimizers:
        optimizer.step()

    ours.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.py"):
        file.unlink()
    save_config(ours.config, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (theirs.config.model_type, [type(theirs).__name__])
    assert "auto_map" not in written and not list((tmp_path / "out").glob("*.py"))
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(back) is type(theirs)
    torch.testing.assert_close(back(ids).logits, theirs(ids).logits, **CLOSE)
    torch.testing.assert_close(load_pretrained(tmp_path / "out").eval()(ids).logits, ours(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["llama", "mistral", "mixtral", "gemma", "phi"])
def test_padded_and_generated_text_is_transformers_own(tmp_path, case):
    """Longer than Mistral's window, with its cache."""
    theirs, ids = made(case), tokens(length=12)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    wanted = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    assert torch.equal(ours.generate(ids, **wanted), theirs.generate(ids, **wanted))


@pytest.mark.parametrize("case", ["mistral", "mixtral", "gemma", "phi"])
def test_dyt_in_place_of_its_norm_travels_and_keeps_what_norms_multiply_by(tmp_path, case):
    theirs = made(case)
    theirs.save_pretrained(tmp_path / "in")
    with pytest.warns(UserWarning, match="swapping norms"):
        swapped = load_pretrained(tmp_path / "in", norm="dyt").eval()
    offset = 1.0 if case == "gemma" else 0.0
    own = theirs.get_parameter("model.layers.0.input_layernorm.weight")
    torch.testing.assert_close(swapped.get_parameter("model.layers.0.input_layernorm.weight"), own + offset, **CLOSE)
    biased = hasattr(theirs.model.layers[0].input_layernorm, "bias")
    assert ("model.layers.0.input_layernorm.bias" in dict(swapped.named_parameters())) == biased
    assert swapped.model.embed_tokens.scale.item() == pytest.approx(64**0.5)
    embedded = swapped.model.embed_tokens(tokens())
    torch.testing.assert_close(embedded, swapped.model.embed_tokens.weight[tokens()] * 8.0, **CLOSE)  # once, not twice

    swapped.save_pretrained(tmp_path / "out")
    again = load_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(tokens()).logits, swapped(tokens()).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("preset", "norm", "parameters"),
    [
        ("llama1_7b", "rmsnorm", 6_738_415_616),
        ("llama1_13b", "rmsnorm", 13_015_864_320),
        ("llama1_30b", "rmsnorm", 32_528_943_616),
        ("llama1_65b", "rmsnorm", 65_285_660_672),
        ("llama2_70b", "rmsnorm", 68_976_648_192),
        ("llama3_8b", "rmsnorm", 8_030_261_248),
        ("llama3_70b", "rmsnorm", 70_553_706_496),
        ("mistral_7b", "rmsnorm", 7_241_732_096),
        ("mistral_7b_v0.3", "rmsnorm", 7_248_023_552),
        ("mixtral_8x7b", "rmsnorm", 46_702_792_704),
        ("mixtral_8x22b", "rmsnorm", 140_620_634_112),
        ("gemma_2b", "unit_offset_rmsnorm", 2_506_172_416),
        ("gemma_7b", "unit_offset_rmsnorm", 8_537_680_896),
        ("phi_1_5", "layernorm", 1_418_270_720),
        ("phi_2", "layernorm", 2_779_683_840),
        ("open_llama_3b", "rmsnorm", 3_426_473_600),
        ("open_llama_7b", "rmsnorm", 6_738_415_616),
        ("open_llama_13b", "rmsnorm", 13_015_864_320),
        ("tiny_llama_1b", "rmsnorm", 1_100_048_384),
        ("code_llama_7b", "rmsnorm", 6_738_546_688),
        ("code_llama_13b", "rmsnorm", 13_016_028_160),
        ("code_llama_34b", "rmsnorm", 33_743_970_304),
        ("llama3.1_8b", "rmsnorm", 8_030_261_248),
        ("llama3.1_70b", "rmsnorm", 70_553_706_496),
        ("llama3.1_405b", "rmsnorm", 405_853_388_800),
        ("llama3.2_1b", "rmsnorm", 1_235_814_400),
        ("llama3.2_3b", "rmsnorm", 3_212_749_824),
    ],
)
def test_presets_have_as_many_parameters_as_what_was_published(preset, norm, parameters):
    assert count_parameters(build_config(preset, norm)) == parameters
    config = build_config(preset, "dyt")
    sites = len(family_of(config).layer_norms) * config.num_hidden_layers + 1
    assert count_parameters(config) == parameters + sites + 1, "an alpha a site, and the embedding's scale"


def test_a_window_is_seen_in_packed_documents_too(tmp_path):
    theirs, ids = made("mistral"), tokens(batch=1)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    whole = torch.zeros_like(ids)
    torch.testing.assert_close(
        ours(ids, document_ids=whole, use_cache=False).logits, theirs(ids, use_cache=False).logits, **CLOSE
    )


@pytest.mark.parametrize("fields", [{"embd_pdrop": 0.1}, {"qk_layernorm": True}])
def test_a_phi_that_no_release_has_is_refused(tmp_path, fields):
    PhiConfig(**TINY, **fields).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="embd_pdrop above 0 and qk_layernorm are not there"):
        build_config(tmp_path)


@pytest.mark.parametrize("case", ["llama", "mistral", "mixtral", "gemma", "phi"])
def test_our_classes_read_a_plain_folder_with_the_norm_it_has(tmp_path, case):
    """Not with DyT, which a config of ours has where nothing is said, and whose alphas would be new."""
    theirs = made(case)
    theirs.save_pretrained(tmp_path)
    kind = type(load_pretrained(tmp_path))
    ours, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(ours.eval()(tokens()).logits, theirs(tokens()).logits, **CLOSE)


def test_a_switch_that_transformers_class_has_not_makes_our_files_travel(tmp_path):
    save_config(build_config("mistral_7b", "rmsnorm", **TINY, attention_bias=True), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["attention_bias"]) == ("mistral_dyt", True)
    assert (tmp_path / "modeling_mistral_dyt.py").is_file()


def test_a_window_in_the_config_of_a_llama_is_none(tmp_path):
    """transformers' LLaMA has none, whatever its config says."""
    LlamaConfig(**TINY, sliding_window=5).save_pretrained(tmp_path)
    assert build_config(tmp_path).sliding_window is None


def test_a_gemma_that_looks_ahead_is_refused(tmp_path):
    GemmaConfig(**TINY, head_dim=32, use_bidirectional_attention=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="use_bidirectional_attention is not there"):
        build_config(tmp_path)


def test_heads_of_a_width_of_their_own_keep_it():
    assert build_config("gemma_2b", hidden_size=512, num_attention_heads=4).head_dim == 256
    wider = build_config("mistral_7b", hidden_size=100, num_attention_heads=6, num_key_value_heads=2, head_dim=32)
    assert wider.head_dim == 32
    assert build_config("7b", hidden_size=512, num_attention_heads=4).head_dim == 128
    with pytest.raises(ConfigurationError, match="head_dim 33 is odd"):
        build_config("gemma_2b", head_dim=33)


@pytest.mark.parametrize("preset", ["llama3.2_1b", "mistral_7b", "gemma_7b", "phi_2"])
def test_work_is_counted_from_the_matrices_there_are_and_what_attention_sees(preset):
    config = build_config(preset, num_hidden_layers=2)
    family = family_of(config)
    matrices = {name: p.numel() for name, p in empty_model(config).named_parameters() if p.dim() == 2}
    embedding, head = f"{family.decoder}.{family.embedding}.weight", f"{family.head}.weight"
    matrices[head] = matrices.pop(embedding)  # the head multiplies, tied or not
    assert family.matmul_parameters(config) == sum(matrices.values())
    seen = 4096 if preset == "mistral_7b" else 8192
    width = config.num_attention_heads * config.head_dim
    assert family.flops_per_token(config, 8192) == 6 * sum(matrices.values()) + 12 * 2 * width * seen


@pytest.mark.parametrize(
    ("preset", "per_layer"), [("gemma_7b", 4 * 3072 + 4 * 4096 + 4 * 24576), ("phi_2", 2 * 2560 + 4 * 2560 + 2 * 10240)]
)
def test_activations_follow_the_heads_and_the_norms_there_are(preset, per_layer):
    config = build_config(preset)
    assert family_of(config).layer_activations(config) == per_layer
