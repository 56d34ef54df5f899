"""Saving and loading as any HF model, with this package and without it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from model_cases import tiny_model, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import llama_dyt
from llama_dyt.models import LlamaDytConfig, LlamaDytForCausalLM, LlamaDytModel
from llama_dyt.models.export import modeling_sources


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_save_and_load_give_the_same_model_in_fp32(tmp_path, norm):
    model = tiny_model(norm)
    model.save_pretrained(tmp_path)
    again = LlamaDytForCausalLM.from_pretrained(tmp_path).eval()
    assert again.dtype == torch.float32
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert LlamaDytForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_auto_classes_find_the_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlamaDytConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaDytForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path)) is LlamaDytModel
    # With the package at hand its own classes are used, whatever the folder carries.
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)) is LlamaDytForCausalLM


def test_config_json_says_what_the_model_started_from(tmp_path):
    tiny_model(attn_alpha_init_value=0.7).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "llama_dyt" and saved["norm_type"] == "dyt" and saved["dtype"] == "float32"
    assert saved["embedding_scale"] is True
    assert [saved[f"{site}_alpha_init_value"] for site in ("attn", "ffn", "dec")] == [0.7, 1.0, 1.0]


def test_exported_files_import_nothing_of_the_package():
    sources = modeling_sources()
    assert {"modeling_llama_dyt.py", "configuration_llama_dyt.py", "dynamic_tanh.py", "rope.py"} <= set(sources)
    assert not [name for name in sources if name.startswith("dynamic_tanh_")], "kernels stay with the package"
    for name, text in sources.items():
        compile(text, name, "exec")
        assert "import llama_dyt" not in text and "from llama_dyt" not in text, name


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["llama_dyt"] = None  # importing it now fails, installed or not
import torch
from transformers import AutoModelForCausalLM

for norm in ("dyt", "rmsnorm"):
    model = AutoModelForCausalLM.from_pretrained(norm, trust_remote_code=True).eval()
    saved = torch.load(norm + ".pt")
    out = model(saved["ids"], labels=saved["ids"])
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    assert model.config.norm_type == norm and model.dtype == torch.float32
    # The copy has DyT's formula and no kernel of this package: the last bits may differ.
    torch.testing.assert_close(out.logits, saved["logits"], rtol=0, atol=0 if norm == "rmsnorm" else 1e-6)
    torch.testing.assert_close(out.loss, saved["loss"], rtol=1e-6, atol=0)

prompt = saved["ids"][:, :4]
assert model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0).shape == (2, 9)
model.save_pretrained("again")  # a copy of the copy
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True).eval()
assert torch.equal(again(saved["ids"]).logits, out.logits)
"""


def test_an_exported_folder_loads_without_the_package(tmp_path):
    ids = tokens()
    for norm in ("dyt", "rmsnorm"):
        model = tiny_model(norm)
        model.save_pretrained(tmp_path / norm)
        out = model(ids, labels=ids)
        torch.save({"ids": ids, "logits": out.logits.detach(), "loss": out.loss.detach()}, tmp_path / f"{norm}.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


REGISTRATION = {
    "config alone does not import torch": "import llama_dyt.config, sys; assert 'torch' not in sys.modules",
    "package first": "import llama_dyt; from transformers import AutoModelForCausalLM as M, AutoConfig as C; TRY",
    "inside transformers' own imports": "import llama_dyt, transformers.models.llama.modeling_llama;"
    "from transformers import AutoModelForCausalLM as M, AutoConfig as C; TRY",
}


@pytest.mark.parametrize("case", REGISTRATION)
def test_registration_works_in_every_order_of_imports(tmp_path, case):
    tiny_model().save_pretrained(tmp_path)
    attempt = (
        f"assert type(C.from_pretrained({str(tmp_path)!r})).__name__ == 'LlamaDytConfig';"
        f"assert type(M.from_pretrained({str(tmp_path)!r})).__module__ == 'llama_dyt.models.modeling_llama_dyt'"
    )
    code = REGISTRATION[case].replace("TRY", attempt)
    root = os.path.dirname(os.path.dirname(llama_dyt.__file__))
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
