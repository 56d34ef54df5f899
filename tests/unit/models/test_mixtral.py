"""Experts and routers as transformers' Mixtral has them: what a token is computed with, and the routers' losses."""

from __future__ import annotations

import json

import pytest
import torch
from model_cases import TINY, tiny_model, tokens
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from llama_dyt.convert.run import convert
from llama_dyt.convert.settings import parse_conversion
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.models import build_config, build_model, count_parameters, empty_model, load_pretrained, read_pretrained
from llama_dyt.models.ops import grouped_linear as grouped
from llama_dyt.models.saved_config import save_config
from llama_dyt.models.spec import family_of

CLOSE = {"rtol": 0, "atol": 1e-5}


def theirs(**fields) -> MixtralForCausalLM:
    """transformers' own, with routers that choose unevenly."""
    torch.manual_seed(0)
    asked = {"num_local_experts": 4, "router_aux_loss_coef": 0.5, "output_router_logits": True, **fields}
    model = MixtralForCausalLM(MixtralConfig(**TINY, **asked)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_the_balancing_loss_and_its_gradients_are_transformers_own(tmp_path, padded, recompute):
    model, ids = theirs(), tokens()
    model.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    if recompute:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 9:] = mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    attention = {"attention_mask": mask} if padded else {}
    wanted = model(ids, labels=labels, **attention)
    wanted.loss.backward()
    loss = ours(ids, labels=labels, **attention).loss
    loss.backward()
    balance = ours.model.routing_board.passes[-1].totals().balance
    torch.testing.assert_close(balance.float(), wanted.aux_loss.detach(), **CLOSE)
    torch.testing.assert_close(loss + 0.5 * balance.float(), wanted.loss, **CLOSE)
    own = dict(ours.named_parameters())
    assert own["model.layers.0.mlp.gate.weight"].grad.abs().max() > 0.01
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            own[name].grad, parameter.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_z_loss_is_the_mean_squared_logarithm_over_all_layers():
    config = build_config("mixtral_8x2m", "dyt", **TINY, router_z_loss_coef=0.3, router_aux_loss_coef=0.0)
    ids = tokens()
    model, plain = build_model(config, seed=1), build_model(config, seed=1)
    model(ids, labels=ids).loss.backward()
    plain.model.routing_board.z = 0.0
    logits = []
    for layer in plain.model.layers:
        layer.mlp.gate.register_forward_hook(lambda *call: logits.append(call[2]))
    loss = plain(ids, labels=ids).loss
    z = torch.cat(logits).logsumexp(-1).square().mean()
    (loss + 0.3 * z).backward()
    torch.testing.assert_close(model.model.routing_board.passes[-1].totals().z.float(), z.detach(), **CLOSE)
    for own, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad, **CLOSE)


@pytest.mark.parametrize(("z", "kind"), [(0.0, "mixtral"), (0.3, "mixtral_dyt")])
def test_a_z_loss_is_saved_with_the_model_and_learned_with_again(tmp_path, z, kind):
    """transformers' class has no field for it: such a folder has our files, any other with this norm has theirs."""
    ids = tokens()
    model = build_model(build_config("mixtral_8x2m", "rmsnorm", **TINY, router_z_loss_coef=z), seed=1).eval()
    save_config(model.config, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    assert (tmp_path / "modeling_mixtral_dyt.py").exists() == bool(z)
    wanted = model(ids, labels=ids).loss
    wanted.backward()
    convert(parse_conversion(["-i", str(tmp_path), "-o", str(tmp_path / "converted")]), print)
    for folder in (tmp_path, tmp_path / "converted"):
        again = load_pretrained(folder)
        assert again.config.router_z_loss_coef == z
        loss = again(ids, labels=ids).loss
        loss.backward()
        assert torch.equal(loss, wanted)
        for own, theirs in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(own.grad, theirs.grad)
    of_transformers_door = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(of_transformers_door(ids, labels=ids).loss, wanted, **CLOSE)


@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [0, 0, 10, 0], [10, 0, 0, 0], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("kernel", [True, False], ids=["torch's", "a loop"])
def test_groups_are_linear_maps_of_their_own_and_rows_of_none_are_zero(monkeypatch, counts, kernel):
    """Also where torch's kernel writes nothing, and for a gradient whose strides are 0."""
    if not kernel:
        monkeypatch.setattr(grouped, "_has_kernel", lambda *tensors: False)
    torch.manual_seed(0)
    rows, weight = torch.randn(13, 16, requires_grad=True), torch.randn(4, 24, 16, requires_grad=True)
    assert grouped._has_kernel(rows, weight) == kernel
    ends = torch.tensor(counts).cumsum(0).int()
    output = grouped.grouped_linear(rows, weight, ends)
    (3 * output).sum().backward()
    own_rows, own_weight = rows.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    groups = own_rows[: sum(counts)].split(counts)
    wanted = torch.cat(
        [*(F.linear(group, own) for group, own in zip(groups, own_weight)), torch.zeros(13 - sum(counts), 24)]
    )
    (3 * wanted).sum().backward()
    torch.testing.assert_close(output, wanted, **CLOSE)
    torch.testing.assert_close(rows.grad, own_rows.grad, **CLOSE)
    torch.testing.assert_close(weight.grad, own_weight.grad, **CLOSE)


def test_routers_compute_in_fp32_whatever_the_model_is_in():
    model = build_model(build_config("mixtral_8x2m", "dyt", **TINY), seed=0).to(torch.bfloat16)
    tokens_of = torch.randn(5, TINY["hidden_size"], dtype=torch.bfloat16)
    gate = model.model.layers[0].mlp.gate
    logits = gate(tokens_of)
    torch.testing.assert_close(logits, F.linear(tokens_of.float(), gate.weight.float()), rtol=0, atol=0)


def test_jitter_is_off_in_evaluation_and_by_default():
    config = build_config("mixtral_8x2m", "dyt", **TINY, router_jitter_noise=0.3)
    model, ids = build_model(config, seed=0), tokens()
    evaluated = model.eval()(ids).logits
    torch.testing.assert_close(model(ids).logits, evaluated, rtol=0, atol=0)
    assert not torch.equal(model.train()(ids).logits, evaluated)
    assert build_config("mixtral_8x7b").router_jitter_noise == 0


@pytest.mark.parametrize("preset", ["mixtral_8x7b", "mixtral_8x2m"])
def test_only_the_experts_that_a_token_is_sent_to_count_as_work(preset):
    config = build_config(preset, "rmsnorm", num_hidden_layers=2)
    family = family_of(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in empty_model(config).named_parameters()}
    work = 0
    for name, shape in shapes.items():
        if len(shape) == 3:
            assert shape[0] == 8
            work += 2 * shape[1] * shape[2]
        elif len(shape) == 2 and "embed" not in name:
            work += shape[0] * shape[1]
    assert family.matmul_parameters(config) == work
    idle = sum(6 * shape[1] * shape[2] for shape in shapes.values() if len(shape) == 3)
    assert family.idle_parameters(config) == idle
    whole = build_config("mixtral_8x7b", "rmsnorm")
    assert count_parameters(whole) - family.idle_parameters(whole) == 12_879_925_248


def test_parts_of_the_hubs_files_are_read_by_slices(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in load_file(tmp_path / "model.safetensors")
    with read_pretrained(tmp_path, build_config(tmp_path)) as read:
        for name, parameter in model.named_parameters():
            stored = read(name)["param"]
            assert torch.equal(stored[:], parameter)
            if parameter.dim() == 3:
                inner = parameter.shape[1] // 2
                for index in [
                    slice(1, 3),
                    (slice(2, 3), slice(inner - 3, inner + 5)),
                    (slice(0, 4), slice(inner, 2 * inner), slice(3, 9)),
                    (slice(0, 0), slice(0, 4), slice(0, 4)),
                ]:
                    torch.testing.assert_close(stored[index], parameter[index], rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["missing", "twice", "shape"])
def test_a_folder_with_a_part_wrong_is_refused_by_name(tmp_path, fault):
    theirs().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    part = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    if fault == "missing":
        del stored[part]
    elif fault == "twice":
        stored["model.layers.1.mlp.experts.gate_up_proj"] = torch.zeros(4, 2, 2)
    else:
        stored[part] = stored[part][:-1].contiguous()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        load_pretrained(tmp_path)


def test_more_experts_a_token_than_there_are_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigurationError, match="num_experts_per_tok 3 is not from 1 to the 2 experts"):
        build_config("mixtral_8x2m", "dyt", num_local_experts=2, num_experts_per_tok=3)


def test_convert_writes_the_hubs_files_and_reads_them_again(tmp_path):
    """A plain model as transformers' own class writes it, to the last tensor; ours whole, as a checkpoint is."""
    model = theirs(output_router_logits=False)
    model.save_pretrained(tmp_path / "hub")
    for source, target, kind in (("hub", "ours", "ours"), ("ours", "again", "hf")):
        settings = parse_conversion(
            ["-i", f"{tmp_path / source}", "-o", f"{tmp_path / target}", "--to", kind, "--verify"]
        )
        convert(settings, print)
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == {name for name, _ in model.named_parameters()}
    wanted, written = (load_file(tmp_path / name / "model.safetensors") for name in ("hub", "again"))
    assert set(wanted) == set(written) and all(torch.equal(wanted[name], written[name]) for name in wanted)


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_an_upcycled_model_says_what_the_dense_one_does(tmp_path, norm):
    dense, ids = tiny_model(norm), tokens()
    dense.save_pretrained(tmp_path / "dense")
    flags = ["-i", f"{tmp_path / 'dense'}", "-o", f"{tmp_path / 'experts'}", "--upcycle", "4", "--verify"]
    convert(parse_conversion(flags), print)
    experts = load_pretrained(tmp_path / "experts")
    assert experts.config.num_local_experts == 4 and experts.config.norm_type == norm
    torch.testing.assert_close(experts(ids).logits, dense(ids).logits, **CLOSE)
    torch.testing.assert_close(experts(ids, labels=ids).loss, dense.train()(ids, labels=ids).loss, **CLOSE)
    with pytest.raises(ConfigurationError, match="--upcycle 2: the model has experts already"):
        convert(parse_conversion(["-i", flags[3], "-o", f"{tmp_path / 'twice'}", "--upcycle", "2"]), print)
    assert not (tmp_path / "twice").exists()
