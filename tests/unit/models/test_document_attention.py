"""A packed row with documents apart is worth its documents one by one, under every attention function."""

import pytest
import torch
from model_cases import tiny_model
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import modeling_flash_attention_utils
from transformers.masking_utils import create_causal_mask

LENGTHS = [[7, 1, 12, 4], [3, 21], [24]]
"""Of the documents in each row; the third is one document."""
EXACT = 1e-5
"""Bound in fp32 on the norm of the gradient's difference by its norm."""
EXACT_PARTS = 1e-4
"""The same of every parameter. An alpha is one number, the sum of much that cancels: measured up to 1.4e-5."""
PLANTED = 1e-2


def documents():
    generator = torch.Generator().manual_seed(3)
    return [[torch.randint(3, 131, (1, n), generator=generator) for n in row] for row in LENGTHS]


def packed(reset_positions=True, apart=True):
    """input_ids and labels of the rows, with what the flags add to them."""
    ids = torch.cat([torch.cat(row, dim=1) for row in documents()])
    numbers = torch.tensor([[n for n, size in enumerate(row) for _ in range(size)] for row in LENGTHS])
    labels = ids.clone()
    if apart:
        labels[:, 1:][numbers[:, 1:] != numbers[:, :-1]] = -100
    batch = {"input_ids": ids, "labels": labels, "document_ids": numbers if apart else torch.zeros_like(numbers)}
    if reset_positions:
        batch["position_ids"] = torch.tensor([[p for size in row for p in range(size)] for row in LENGTHS])
    return batch


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def of_packed(model, **flags):
    loss = model(**packed(**flags)).loss
    return loss.item(), gradients(model, loss)


def one_by_one(model, reset_positions=True):
    """The mean loss of all tokens that have a token of their document before them, each document a row of its own."""
    total, count = 0, 0
    for row in documents():
        first = 0
        for ids in row:
            places = torch.arange(ids.shape[1])[None] + (0 if reset_positions else first)
            logits = model(ids, position_ids=places, use_cache=False).logits
            total = total + cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
            count += ids.shape[1] - 1
            first += ids.shape[1]
    loss = total / count
    return loss.item(), gradients(model, loss)


def distance(found, expected):
    """Of two (loss, gradients): norm of the difference by norm, of the whole gradient and of the worst parameter."""
    (loss, grads), (expected_loss, expected_grads) = found, expected
    difference = {name: (grads[name] - grad).norm() for name, grad in expected_grads.items()}
    norms = {name: grad.norm() for name, grad in expected_grads.items()}
    whole = torch.stack([*difference.values()]).norm() / torch.stack([*norms.values()]).norm()
    parts = max(difference[name] / norms[name] for name in norms)
    return max(whole, abs(loss - expected_loss) / expected_loss), parts


def same(found, expected):
    whole, parts = distance(found, expected)
    return bool(whole < EXACT and parts < EXACT_PARTS)


def other(found, expected):
    return bool(distance(found, expected)[0] > PLANTED)


def model_with(attention, **overrides):
    model = tiny_model(**overrides).train()
    model.config._attn_implementation = attention
    return model


@pytest.fixture(params=["sdpa", "eager", "flash_attention_2"])
def attention(request, monkeypatch):
    if request.param.startswith("flash"):
        stand_in_for_flash_attention(monkeypatch)
    return request.param


def stand_in_for_flash_attention(monkeypatch):
    """flash-attn's two functions, by their documentation, over torch's own; transformers' code around them is real.

    Returns:
        the lists of lengths that the one for many documents was called with.
    """
    calls = []

    def causal(q, k, v, softmax_scale):
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True).transpose(
            1, 2
        )

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, deterministic=False):
        assert causal and dropout_p == 0.0
        return attend(q, k, v, softmax_scale)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        assert causal and dropout_p == 0.0 and q.dim() == 3 and cu_seqlens_q.dtype == torch.int32
        lengths = cu_seqlens_q.diff().tolist()
        assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist() and cu_seqlens_q[0] == 0 and sum(lengths) == len(q)
        assert max_seqlen_q == max_seqlen_k == max(lengths)
        calls.append(lengths)
        parts = (tensor.split(lengths) for tensor in (q, k, v))
        return torch.cat([attend(*(part[None] for part in document), softmax_scale)[0] for document in zip(*parts)])

    attend = causal
    functions = (flash_attn_func, flash_attn_varlen_func, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    return calls


@pytest.mark.parametrize("reset_positions", [True, False])
@pytest.mark.parametrize("recomputing", [False, True])
def test_documents_apart_equal_documents_one_by_one(attention, reset_positions, recomputing):
    model = model_with(attention)
    if recomputing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert same(of_packed(model, reset_positions=reset_positions), one_by_one(model, reset_positions))


def test_a_mistake_shows(attention):
    """What the test above would find: attention across documents, or to the last token of the one before. Positions are
    relative under rotary embeddings, so where attention stays within documents they may begin anywhere."""
    model = model_with(attention)
    expected = one_by_one(model)
    batch = packed()
    across = model(**{**batch, "document_ids": torch.zeros_like(batch["document_ids"])}).loss
    assert other((across.item(), gradients(model, across)), expected)
    late = {**batch, "document_ids": torch.roll(batch["document_ids"], 1, dims=1)}  # begins one token too late
    late["document_ids"][:, 0] = 0
    assert other((model(**late).loss.item(), gradients(model, model(**late).loss)), expected)


def test_positions_alone_start_anew_while_attention_goes_on(attention):
    model = model_with(attention)
    found = of_packed(model, apart=False)
    plain = model_with("sdpa")
    batch = packed(apart=False)
    mask = torch.ones(24, 24, dtype=torch.bool).tril().expand(len(LENGTHS), 1, 24, 24)
    loss = plain(batch["input_ids"], mask, batch["position_ids"], labels=batch["labels"]).loss
    assert same(found, (loss.item(), gradients(plain, loss)))
    assert other(of_packed(model), found), "attention within documents is something else"
    assert other(of_packed(model, apart=False, reset_positions=False), found), "so are running positions"


def test_flash_attention_is_told_of_documents_in_batches_of_any_size(monkeypatch):
    """transformers would find them in positions, where they start anew, and in batches of one row."""
    calls = stand_in_for_flash_attention(monkeypatch)
    model = model_with("flash_attention_2")
    for flags in ({}, {"reset_positions": False}):
        model(**packed(**flags))
    assert calls == [[size for row in LENGTHS for size in row]] * 2 * 2  # two layers
    calls.clear()
    one_row = {name: tensor[:1] for name, tensor in packed(apart=False).items()}
    model(**one_row)
    assert calls == [], "plain causal attention where positions alone start anew"


def test_no_mask_is_made_where_attention_is_plain(monkeypatch):
    masks = []

    def spy(*args, **kwargs):
        masks.append(create_causal_mask(*args, **kwargs))
        return masks[-1]

    monkeypatch.setattr("llama_dyt.models.ops.document_attention.create_causal_mask", spy)
    model = model_with("sdpa")
    model(**packed(apart=False))
    assert masks == [None]
    model(**packed())
    assert masks[1].shape == (len(LENGTHS), 1, 24, 24) and masks[1].dtype == torch.bool


def test_positions_that_start_anew_still_part_documents_where_nothing_else_is_said():
    """transformers' own convention, which a caller of the model may rely on."""
    model, batch = model_with("sdpa"), packed()
    numbers = batch.pop("document_ids")
    apart = model(**batch, use_cache=False, skip_logits=False).logits
    assert torch.equal(apart, model(**batch, document_ids=numbers, skip_logits=False).logits)


def test_padding_and_cache_are_refused():
    model = tiny_model()
    ids, numbers = packed()["input_ids"], packed()["document_ids"]
    for wrong in ({"attention_mask": torch.ones_like(ids)}, {"use_cache": True}):
        with pytest.raises(ValueError, match="document_ids are for packed sequences"):
            model(ids, document_ids=numbers, **wrong)
    assert model(ids, document_ids=numbers).past_key_values is None
