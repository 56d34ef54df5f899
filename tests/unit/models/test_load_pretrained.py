"""Starting from existing weights: what loads, and what is said of what does not."""

import json

import pytest
import torch
from model_cases import tiny_config, tiny_model, tokens
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llama_dyt.core.errors import CheckpointError
from llama_dyt.models import load_pretrained
from llama_dyt.models.pretrained import SWAP_WARNING


@pytest.fixture
def saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dyt")
    return model, tmp_path / "dyt"


@pytest.fixture
def llama(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=96, vocab_size=131
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "llama")
    return model, tmp_path / "llama"


def test_our_own_folder_comes_back_equal_and_in_fp32(saved):
    model, folder = saved
    again = load_pretrained(folder)
    ids = tokens()
    assert again.dtype == torch.float32 and torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert load_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_half_precision_folder_is_loaded_as_fp32_masters(saved, tmp_path):
    model, _ = saved
    model.bfloat16().save_pretrained(tmp_path / "half")
    again = load_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.float())


def test_a_plain_llama_loads_as_it_is(llama):
    theirs, folder = llama
    ours = load_pretrained(folder).eval()
    ids = tokens()
    assert ours.config.norm_type == "rmsnorm"
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_swapping_norms_warns_and_starts_only_what_dyt_adds(llama):
    theirs, folder = llama
    with pytest.warns(UserWarning, match=SWAP_WARNING):
        ours = load_pretrained(folder, norm="dyt", attn_alpha_init_value=0.9)
    state, own = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert ours.model.layers[1].input_layernorm.alpha.item() == pytest.approx(0.9)
    assert ours.model.embed_tokens.scale.item() == 8


def test_swapping_back_drops_what_dyt_added(saved):
    model, folder = saved
    with pytest.warns(UserWarning, match=SWAP_WARNING):
        plain = load_pretrained(folder, norm="rmsnorm")
    assert torch.equal(plain.model.norm.weight, model.model.norm.weight)
    assert not hasattr(plain.model.norm, "alpha")


def test_a_sharded_folder_loads(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert torch.equal(load_pretrained(tmp_path / "sharded").lm_head.weight, model.lm_head.weight)


def test_a_tied_model_saves_one_weight_and_loads_tied(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_pretrained(tmp_path).eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def refused(path, **arguments):
    with pytest.raises(CheckpointError) as error:
        load_pretrained(path, **arguments)
    assert "\n" not in str(error.value), "one line"
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "none") in refused(tmp_path / "none")


def test_a_folder_without_a_config_names_the_one_meant(saved, tmp_path):
    assert "no config.json" in refused(tmp_path)
    _, folder = saved
    (tmp_path / "step_00000100").mkdir()
    folder.rename(tmp_path / "step_00000100" / "model")
    assert "did you mean" in refused(tmp_path / "step_00000100")


def test_truncated_weights_are_named_with_their_size(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    message = refused(folder)
    assert str(file) in message and f"{file.stat().st_size} bytes" in message


def test_weights_of_another_size_name_the_tensor_and_both_shapes(saved):
    _, folder = saved
    message = refused(folder, config=tiny_config(intermediate_size=100))
    assert "mlp" in message and "(96, 64)" in message and "(100, 64)" in message


def test_a_vocabulary_of_another_size_names_the_embedding(saved):
    _, folder = saved
    assert "embed_tokens.weight has shape (131, 64)" in refused(folder, vocab_size=200)


def test_missing_and_surplus_tensors_are_named(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lacking = {name: tensor for name, tensor in tensors.items() if name != "model.layers.1.self_attn.q_proj.weight"}
    save_file(lacking, file, metadata={"format": "pt"})
    assert "lacks model.layers.1.self_attn.q_proj.weight" in refused(folder)
    save_file(tensors | {"model.layers.2.extra": torch.ones(1)}, file, metadata={"format": "pt"})
    assert "no place for model.layers.2.extra" in refused(folder)


def test_a_missing_alpha_is_an_error_unless_norms_are_swapped(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.alpha"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "lacks model.norm.alpha" in refused(folder)


def test_a_missing_shard_is_named(saved, tmp_path):
    model, _ = saved
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({}))
    assert "index" in refused(folder)


def test_old_bin_weights_say_what_to_do(saved):
    _, folder = saved
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert.py makes safetensors of it" in refused(folder)
