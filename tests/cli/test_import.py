"""--import in the entries: a user's module is found where a program is started, and is the same for all ranks."""

from __future__ import annotations

import sys

import pytest

import generate
from llama_dyt.core import extensions
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from tests.cli.entries import MODEL_SIZE, Command

MODULE = '''
from dataclasses import dataclass
from llama_dyt.config import Owned, declare
from llama_dyt.config.options import option

@dataclass(frozen=True)
class Settings:
    """A user's own."""

    noise: float = option({default}, "Standard deviation of the noise.")

declare(Owned({{"noise": Settings}}))
'''
FLAGS = ["--import", "mine", *MODEL_SIZE, "-l", "32", "-b", "1", "-p", "zero2", "--mixed_precision", "fp32", "-s", "3"]


def test_a_modules_flags_are_in_the_help(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE.format(default=0.0))
    for entry in ("pretrain", "finetune", "benchmark"):
        outcome = Command(entry, ["--help", "--import", "mine"], tmp_path).run()
        assert outcome.status == 0 and "--noise FLOAT" in outcome.stdout, outcome.stderr


def test_ranks_with_another_module_of_one_name_do_not_start(tmp_path):
    disks = [tmp_path / "node0", tmp_path / "node1"]
    for folder, default in zip(disks, (0.0, 0.5), strict=True):
        folder.mkdir()
        (folder / "mine.py").write_text(MODULE.format(default=default))
    outcome = Command("benchmark", FLAGS, tmp_path, "srun", processes=2, folders=disks).run()
    assert outcome.status == 2
    remedy, module, noise = sorted(outcome.errors)
    assert noise == "ranks disagree on --noise: rank 0: 0.0; rank 1: 0.5"
    assert module.startswith("ranks disagree on --import mine: rank 0: ") and f"{disks[1]}/mine.py" in module
    assert "all ranks must read the same files" in remedy


def test_generate_imports_before_it_looks_for_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extensions, "_loaded", {})
    (tmp_path / "my_models_part.py").write_text("")
    with pytest.raises(CheckpointError, match="--model_path .*: no complete checkpoint"):
        generate.main(["--model_path", str(tmp_path), "--import", "my_models_part"])
    assert sys.modules.pop("my_models_part").__file__ == str(tmp_path / "my_models_part.py")
    with pytest.raises(ConfigurationError) as caught:
        generate.main(["--model_path", str(tmp_path), "--import", "nowhere", "--top_k", "0"])
    assert [problem.flag for problem in caught.value.problems] == ["import", "top_k"]
