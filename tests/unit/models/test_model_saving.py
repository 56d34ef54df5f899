"""Saving and loading as any HF model, with this package and without it."""

import json
import os
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_cases import TINY, tiny_model, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import llama_dyt
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece
from llama_dyt.models import (
    FAMILIES,
    LlamaDytConfig,
    LlamaDytForCausalLM,
    LlamaDytModel,
    build_config,
    build_model,
    missing_imports,
    require_parts,
    require_travelling,
)
from llama_dyt.models.export import _source_of_user, _travels, modeling_sources


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


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_exported_files_import_nothing_of_the_package(norm):
    sources = modeling_sources("llama_dyt", norm)
    needed = {"modeling_llama_dyt.py", "configuration_llama_dyt.py", "llama_dyt_norms_layers_dynamic_tanh.py"}
    assert {*needed, "llama_dyt_models_ops_rope.py"} <= set(sources), "named by their whole path, but for HF's two"
    assert ("llama_dyt_norms_layers_rms_norm.py" in sources) == (norm == "rmsnorm")
    assert not [name for name in sources if "kernels" in name], "kernels stay with the package"
    for name, text in sources.items():
        compile(text, name, "exec")
        assert "import llama_dyt" not in text and "from llama_dyt" not in text, name


def test_a_family_that_is_in_no_file_is_refused_with_what_to_do(monkeypatch):
    module = types.ModuleType("typed_in")
    monkeypatch.setitem(sys.modules, "typed_in", module)
    monkeypatch.setattr(FAMILIES, "_entries", {})
    text = Path(__file__).parents[2].joinpath("extension/two_matrix_family.py").read_text(encoding="utf-8")
    exec(text, module.__dict__)
    with pytest.raises(ConfigurationError) as refused:
        require_travelling(build_config("two_matrix_tiny"))
    assert str(refused.value) == (
        "model family two_matrix: its classes cannot travel with the model, since typed_in is no module with a file: "
        "put them in a file of their own and bring it in by --import"
    )


@pytest.mark.parametrize(
    ("fields", "modules"),
    [
        ({"norm_type": "mine", "norm_module": "my_norm"}, ["my_norm"]),
        ({"model_type": "mine", "family_module": "my_family"}, ["my_family"]),
        ({"model_type": "a", "family_module": "both", "norm_type": "b", "norm_module": "both"}, ["both"]),
        ({"model_type": "llama_dyt", "norm_type": "dyt"}, []),
    ],
)
def test_a_saved_model_names_the_modules_that_must_be_imported(tmp_path, fields, modules):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    problems = missing_imports(tmp_path)
    assert [(problem.flag, problem.value) for problem in problems] == [("import", module) for module in modules]
    assert all(f"give --import {module}" in problem for module, problem in zip(modules, problems))


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

saved = torch.load("experts.pt")
experts = AutoModelForCausalLM.from_pretrained("experts", trust_remote_code=True).eval()
torch.testing.assert_close(experts(saved["ids"]).logits, saved["logits"], rtol=0, atol=1e-6)
limited = experts.train()(saved["ids"]).logits
torch.testing.assert_close(limited, saved["limited"], rtol=0, atol=1e-6)
assert experts.model.routing_board.passes[0].totals().dropped.sum() > 0, "in training experts have a capacity"

saved = torch.load("z_loss.pt")
experts = AutoModelForCausalLM.from_pretrained("z_loss", trust_remote_code=True).eval()
out = experts(saved["ids"], labels=saved["ids"])
out.loss.backward()
torch.testing.assert_close(out.loss, saved["loss"], rtol=1e-6, atol=0)
for layer, wanted in zip(experts.model.layers, saved["of_routers"], strict=True):
    torch.testing.assert_close(layer.mlp.gate.weight.grad, wanted, rtol=1e-4, atol=1e-7)
"""


def test_an_exported_folder_loads_without_the_package(tmp_path):
    ids = tokens()
    for norm in ("dyt", "rmsnorm"):
        model = tiny_model(norm)
        model.save_pretrained(tmp_path / norm)
        out = model(ids, labels=ids)
        torch.save({"ids": ids, "logits": out.logits.detach(), "loss": out.loss.detach()}, tmp_path / f"{norm}.pt")
    experts = build_model(build_config("mixtral_8x2m", "dyt", **TINY, expert_capacity_factor=0.5), seed=0)
    experts.save_pretrained(tmp_path / "experts")
    limited, whole = experts.train()(ids).logits.detach(), experts.eval()(ids).logits.detach()
    torch.save({"ids": ids, "limited": limited, "logits": whole}, tmp_path / "experts.pt")
    # The family's own norm, and a loss that transformers' class has no field for.
    experts = build_model(build_config("mixtral_8x2m", "rmsnorm", **TINY, router_z_loss_coef=3.0), seed=0).eval()
    experts.save_pretrained(tmp_path / "z_loss")
    loss = experts(ids, labels=ids).loss
    loss.backward()
    of_routers = [layer.mlp.gate.weight.grad for layer in experts.model.layers]
    torch.save({"ids": ids, "loss": loss.detach(), "of_routers": of_routers}, tmp_path / "z_loss.pt")
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


TRUST = ", trust_remote_code=True"


def loading_snippets():
    """Every Python block of README and docs/checkpoints.md that loads a folder, as it stands and with our package."""
    root = Path(llama_dyt.__file__).parents[1]
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/checkpoints.md"))
    blocks = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "from_pretrained" in block]
    assert len(blocks) == 2 and all(block.count(TRUST) == 2 for block in blocks)
    alone = [f"import sys; sys.modules['llama_dyt'] = None\n{block}" for block in blocks]
    return [*alone, *(f"import llama_dyt\n{block.replace(TRUST, '')}" for block in blocks)]


def test_the_documented_ways_to_load_a_folder_ask_nothing_and_warn_of_nothing(tmp_path):
    model = tiny_model(vocab_size=330, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    train_sentencepiece(
        ["def area(width, height):\n    return width * height\n" * 40], tmp_path / "t", 330
    ).save_pretrained(tmp_path / "model")
    environment = os.environ | {
        "HF_MODULES_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(llama_dyt.__file__).parents[1]),
    }
    last = "\nassert model(**tokenizer('def area', return_tensors='pt')).logits.shape[-1] == 330\n"
    programs = [
        re.sub(r'^folder = ".*"$', f"folder = {str(tmp_path / 'model')!r}", snippet, flags=re.M) + last
        for snippet in loading_snippets()
    ]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for program in dict.fromkeys(programs)
    ]
    for process in started:
        stdout, stderr = process.communicate(timeout=500)
        told = [line for line in re.split(r"[\r\n]+", stderr) if line and not line.startswith("Loading weights:")]
        assert (process.returncode, stdout, told) == (0, "", [])


REGISTRATION = {
    "config alone does not import torch": "import llama_dyt.config, sys; assert 'torch' not in sys.modules",
    "package first": "import llama_dyt; from transformers import AutoModelForCausalLM as M, AutoConfig as C; TRY",
    "our classes alone": "import llama_dyt; from transformers import AutoModelForCausalLM as M, AutoConfig as C;"
    "from transformers import AutoModel as A;"
    "from llama_dyt.models import LlamaDytConfig as D; A.from_config(D(num_hidden_layers=1, hidden_size=32)); TRY",
    "inside transformers' own imports": "import llama_dyt, transformers.models.llama.modeling_llama;"
    "from transformers import AutoModelForCausalLM as M, AutoConfig as C; TRY",
}


@pytest.mark.parametrize("case", REGISTRATION)
def test_registration_works_in_every_order_of_imports(tmp_path, case):
    tiny_model().save_pretrained(tmp_path)
    attempt = (
        f"assert type(C.from_pretrained({str(tmp_path)!r})).__name__ == 'LlamaDytConfig';"
        f"assert type(M.from_pretrained({str(tmp_path)!r})).__module__ == 'llama_dyt.models.llama.modeling_llama_dyt'"
    )
    code = REGISTRATION[case].replace("TRY", attempt)
    root = os.path.dirname(os.path.dirname(llama_dyt.__file__))
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.parametrize(
    "line", ["import beside_it", "from beside_it import near", "from . import near", "import lonely.near"]
)
def test_a_file_that_needs_what_lies_beside_it_cannot_travel(line, tmp_path, monkeypatch):
    (tmp_path / "lonely.py").write_text(f"import json, torch\n{line}\n")
    module = types.ModuleType("lonely")
    module.__file__ = str(tmp_path / "lonely.py")
    monkeypatch.setitem(sys.modules, "lonely", module)
    with pytest.raises(ConfigurationError, match=f"^--norm mine: its file lonely cannot travel .* it needs '{line}'"):
        _source_of_user("lonely", "--norm mine")
    (tmp_path / "lonely.py").write_text("import json, torch\nfrom huggingface_hub.dataclasses import strict\n")
    assert "strict" in _source_of_user("lonely", "--norm mine")


def test_what_is_imported_from_a_package_cannot_travel():
    """It may be a file of the package's, which the package's own file in the folder would not have."""
    assert _travels("llama_dyt.norms.specs.dyt") and _travels("llama_dyt.norms.spec")
    assert not _travels("llama_dyt.norms.specs") and not _travels("llama_dyt.norms.none")


def test_a_family_that_names_parts_its_layers_have_not_is_told_all_of_them(monkeypatch):
    spec = replace(FAMILIES.get("llama_dyt"), row_parallel=("self_attn.o_proj", "mlp.dwn_proj"), layer_norms=("ln",))
    config = build_config("15m")
    require_parts(config)
    monkeypatch.setattr("llama_dyt.models.build.family_of", lambda config: spec)
    with pytest.raises(ConfigurationError) as refused:
        require_parts(config)
    first, second = refused.value.problems
    assert first.startswith(
        "model family llama_dyt: its row_parallel names 'mlp.dwn_proj', which its layers do not have;"
    )
    assert "mlp.down_proj" in first and second.startswith("model family llama_dyt: its layer_norms names 'ln'")
