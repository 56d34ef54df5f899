"""peft's adapters on our models: untrained they change nothing, merged they give what they gave beside the weights."""

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from model_cases import tiny_model, tokens

import llama_dyt  # noqa: F401  what makes peft know the model

ROOT = Path(__file__).parents[3]

ADAPTERS = {
    "LoRA where peft would": {},
    "LoRA on every linear layer": {"target_modules": "all-linear"},
    "LoRA on the embedding": {"target_modules": ["embed_tokens"]},
    "DoRA on the embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "LoRA and new rows of the embedding": {"trainable_token_indices": [3, 5, 8]},
    "LoRA and the embedding itself": {"modules_to_save": ["embed_tokens"]},
    "LoRA on the head": {"target_modules": ["lm_head"]},
}


def trained(model):
    """Every trainable parameter moved, as training would; more than one of them starts at 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def check(config, norm="dyt", **overrides):
    """That `config`'s adapter is none at first and the same before and after merging."""
    model, ids = tiny_model(norm, **overrides), tokens()
    plain = model(ids).logits.detach()
    adapted = peft.get_peft_model(model, config).eval()
    torch.testing.assert_close(adapted(ids).logits, plain, rtol=0, atol=1e-5)
    beside = trained(adapted)(ids).logits.detach()
    assert (beside - plain).abs().max() > 1e-3
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, beside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_nothing_at_first_and_the_same_when_merged(case, norm):
    check(peft.LoraConfig(r=4, **ADAPTERS[case]), norm)


def test_trained_rows_of_a_tied_embedding_reach_the_head_without_its_scale():
    check(peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 5]), tie_word_embeddings=True)


@pytest.mark.parametrize("config", [peft.IA3Config, peft.LNTuningConfig, peft.LoHaConfig, peft.OFTConfig])
def test_other_adapters_know_their_places_too(config):
    check(config())


def test_an_adapter_trains_with_the_loss_of_hidden_states():
    torch.manual_seed(0)
    model, ids = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4)).train(), tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, parameter in model.named_parameters() if "lora_" in name}
    assert {name.split(".")[-4] for name in learned} == {"q_proj", "v_proj"}


def test_default_places_are_there_whichever_is_imported_first():
    first = "import llama_dyt, peft.utils.constants as c"
    second = "import peft.utils.constants as c, llama_dyt"
    for imports in (first, second):
        code = (
            f"{imports}; t = c.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING; assert t['llama_dyt'] == t['llama']"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-2000:]
