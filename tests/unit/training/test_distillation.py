"""What a teacher adds to the loss, and who cannot teach or be taught."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llama_dyt.config.check import collect_problems
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, build_model
from llama_dyt.training.distillation.objective import Distillation
from llama_dyt.training.distillation.settings import DistillationSettings
from llama_dyt.training.distillation.teacher import require_teacher

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 31,
}
DENOMINATOR = 5.0


def small(norm: str, seed: int, **changes):
    return build_model(build_config("15m", norm=norm, **{**SMALL, **changes}), seed=seed)


@pytest.fixture
def inputs():
    ids = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": ids.masked_fill(ids % 3 == 0, -100)}


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_it_is_the_weighted_sum_of_its_parts_and_its_value_the_cross_entropy(inputs):
    student, teacher = small("dyt", 1).train(), small("rmsnorm", 2)
    settings = DistillationSettings(None, distill_weight=0.3, distill_temperature=2.0, distill_hidden_weight=0.7)
    found = Distillation(teacher, settings)(student, inputs, DENOMINATOR)

    own = student(inputs["input_ids"], output_hidden_states=True, use_cache=False)
    its = teacher(inputs["input_ids"], output_hidden_states=True, use_cache=False)
    kept = inputs["labels"][:, 1:] != -100
    targets = inputs["labels"][:, 1:][kept]
    logits, taught = own.logits[:, :-1][kept], its.logits[:, :-1][kept]
    entropy = F.cross_entropy(logits, targets, reduction="sum") / DENOMINATOR
    p = (taught / 2).softmax(-1)
    divergence = (p * (p.log() - (logits / 2).log_softmax(-1))).sum() * 4 / DENOMINATOR
    errors = []
    for a, b in list(zip(own.hidden_states, its.hidden_states))[1:]:
        a, b = a[:, :-1][kept], b[:, :-1][kept]
        errors.append(((a - b).square().sum(-1) / b.square().sum(-1)).sum() / DENOMINATOR)
    aim = 0.7 * entropy + 0.3 * divergence + 0.7 * sum(errors) / len(errors)
    assert len(errors) == 2  # behind the first layer, and behind the last and its norm

    assert found.item() == pytest.approx(entropy.item(), rel=1e-6)
    for got, wanted in zip(gradients(student, found), gradients(student, aim), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    assert not teacher.training and not any(held.requires_grad for held in teacher.parameters())


def test_of_a_model_that_is_its_own_teacher_nothing_but_the_cross_entropy_is_learned(inputs):
    student = small("dyt", 1).train()
    settings = DistillationSettings(None, distill_weight=1.0, distill_hidden_weight=1.0)
    found = Distillation(small("dyt", 1), settings)(student, inputs, DENOMINATOR)
    assert max(gradient.abs().max().item() for gradient in gradients(student, found)) < 1e-6


def test_no_label_gives_no_gradient(inputs):
    student = small("dyt", 1).train()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    settings = DistillationSettings(None, distill_hidden_weight=1.0)
    found = Distillation(small("rmsnorm", 2), settings)(student, inputs, 0.0)
    assert found.item() == 0 and all(not gradient.any() for gradient in gradients(student, found))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"distill_weight": 0.7}, "add --distill_from"),
        ({"distill_from": "/x", "plugin": "gemini"}, "--plugin gemini is none that distillation is made for; take"),
        ({"distill_from": "/x", "plugin": "hybrid_parallel", "tp": 2}, "give --tp 1"),
        ({"distill_from": "/x", "plugin": "hybrid_parallel", "pp": 2}, "give --pp 1"),
        ({"distill_from": "/x", "plugin": "ddp", "distill_weight": 0.0}, "nothing is learned from the teacher"),
    ],
)
def test_flags_that_cannot_be(flags, said):
    problems = [str(problem) for problem in collect_problems(RunConfig.build("pretrain", **flags), 2, "cpu")]
    assert sum(said in problem for problem in problems) == 1, problems


def test_teachers_that_cannot_teach(tmp_path):
    small("rmsnorm", 2).save_pretrained(tmp_path / "teacher")
    settings = DistillationSettings("named", distill_hidden_weight=1.0)
    good = build_config("15m", norm="dyt", **SMALL)
    require_teacher(tmp_path / "teacher", settings, good)
    for change, said in (
        ({"vocab_size": 40}, "its vocabulary has 31 pieces, the model's 40"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2, the model's 3"),
    ):
        with pytest.raises(ConfigurationError, match=f"--distill_from named.*{said}"):
            require_teacher(tmp_path / "teacher", settings, build_config("15m", norm="dyt", **{**SMALL, **change}))
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ConfigurationError, match="--distill_from named"):
        require_teacher(tmp_path / "teacher", settings, good)
