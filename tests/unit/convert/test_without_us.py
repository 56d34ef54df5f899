"""What convert.py writes of patched models loads where this package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conversions import TOKENS, converted, tiny_model
from transformers import AutoModelForCausalLM

PROGRAM = """
import sys
sys.modules["llama_dyt"] = None  # as if it were not installed
import torch
from transformers import AutoModelForCausalLM

said = {}
tokens = torch.load("tokens")
for name in ("half", "folded", "tapered"):
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, dtype=torch.float32).eval()
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    left = sorted({parameter for norm in norms for parameter, _ in norm.named_parameters()})
    with torch.no_grad():
        longer = model.generate(tokens, max_new_tokens=4, do_sample=False)
        said[name] = (model(tokens).logits, longer, left)
said["gates"] = [norm.gate.item() for norm in norms]
torch.save(said, "said")
"""


def test_patched_and_folded_folders_load_and_generate_without_us(tmp_path):
    model = tiny_model("dyt")
    model.save_pretrained(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "half", "--dtype", "bf16")
    converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt")
    tapered = tiny_model("tapered")
    gates = [number / 10 for number in range(len(tapered.config.taper_gates))]
    tapered.config.taper_gates = gates
    tapered.save_pretrained(tmp_path / "tapered")
    torch.save(TOKENS, tmp_path / "tokens")
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, check=True, capture_output=True)
    said = torch.load(tmp_path / "said")
    with torch.no_grad():
        for name in ("folded", "half"):
            model = model.to(torch.bfloat16).float() if name == "half" else model
            logits, longer, left = said[name]
            torch.testing.assert_close(logits, model(TOKENS).logits, rtol=0, atol=1e-5)
            assert torch.equal(longer, model.generate(TOKENS, max_new_tokens=4, do_sample=False))
            assert left == (["alpha"] if name == "folded" else ["alpha", "weight"])
        assert said["gates"] == pytest.approx(gates)
        own = AutoModelForCausalLM.from_pretrained(tmp_path / "tapered").eval()
        torch.testing.assert_close(said["tapered"][0], own(TOKENS).logits, rtol=0, atol=1e-5)
