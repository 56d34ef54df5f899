"""The head's matrix product and its cross entropy in one operation, a chunk of tokens at a time.

The logits of all tokens are the largest tensor of a training step: with 128k tokens in the vocabulary, as many numbers
as 32 layers' activations. Here a chunk's logits become at once its loss and its gradients, and the next chunk takes
their memory. No product is computed twice.

It is a registered operation (`torch.ops.llama_dyt.linear_cross_entropy`), not an autograd function, because Gemini's
hooks see only the former, and so that torch.compile traces it whole. Saved models do not carry it along.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from llama_dyt.models.ops.loss import IGNORE_INDEX, VocabularyPart, combine_ranks, token_losses
from llama_dyt.norms.kernels.applicable import operators_apply

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Memory of one chunk's logits in fp32, by kind of device: the smallest that costs no speed."""
_ROW_MULTIPLE = 128
"""Rows of a matrix that a GPU multiplies at full speed."""
_PRODUCT_BYTES = 256 * 2**20
"""Largest temporary product where a chunk's share of the weight's gradient cannot be added in place."""


def rows_of_chunk(num_tokens: int, vocabulary: int, device_type: str) -> int:
    """How many tokens a chunk has: chunks of nearly one size, whose fp32 logits take CHUNK_BYTES at most."""
    most = max(1, CHUNK_BYTES["cpu" if device_type == "cpu" else "cuda"] // (4 * max(vocabulary, 1)))
    if num_tokens <= most:
        return max(num_tokens, 1)
    if device_type != "cpu" and most >= _ROW_MULTIPLE:
        return most // _ROW_MULTIPLE * _ROW_MULTIPLE
    chunks = -(-num_tokens // most)
    return -(-num_tokens // chunks)


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    part: VocabularyPart | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum of `-log softmax(hidden_states @ weight.T)[target]` over the tokens that have a target.

    Args:
        hidden_states: (..., hidden_size).
        weight: (vocabulary, hidden_size), or this rank's rows of it, in the same dtype; under autocast any.
        targets: token ids, as many as hidden states; -100: none.
        z_loss: backward adds the gradient of z_loss * logsumexp^2; the value returned does not have it.
        part: which rows `weight` holds. The hidden states' gradient is then this rank's share, to be summed by the
            caller.
        chunk_rows: tokens a chunk; None: by CHUNK_BYTES.

    Returns:
        An fp32 scalar, 0 without targets; not finite where a hidden state is not. It has first derivatives only, but
        under functorch and where a program is exported, where whole logits are made.
    """
    kind = hidden_states.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    if not operators_apply():
        scores = torch.mm(flat, weight.t()).float()
        return token_losses(scores, targets.reshape(-1), z_loss, part).sum()
    learning = torch.is_grad_enabled()
    total, _, _ = _linear_cross_entropy(
        flat,
        weight,
        targets.reshape(-1),
        z_loss,
        part.group.group_name if part else "",
        part.first if part else 0,
        part.rows if part else weight.shape[0],
        chunk_rows or rows_of_chunk(flat.shape[0], weight.shape[0], kind),
        learning and hidden_states.requires_grad,
        learning and weight.requires_grad,
    )
    return total


@torch.library.custom_op("llama_dyt::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float,
    group_name: str,
    first: int,
    rows: int,
    chunk_rows: int,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of losses, its gradient for hidden, its gradient for weight in fp32); gradients not asked for are empty."""
    group = dist.distributed_c10d._resolve_process_group(group_name) if group_name else None
    num_tokens = hidden.shape[0]
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)  # of any number of chunks
    hidden_gradient = torch.empty(hidden.shape if for_hidden else (0,), dtype=hidden.dtype, device=hidden.device)
    # fp32 whatever the weight is in: chunks are added up, and the sum is rounded once.
    weight_gradient = torch.empty(weight.shape if for_weight else (0,), dtype=torch.float32, device=hidden.device)
    if num_tokens == 0:
        weight_gradient.zero_()
    buffer = torch.empty((min(chunk_rows, num_tokens), weight.shape[0]), dtype=hidden.dtype, device=hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, num_tokens, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            inputs, own = hidden[chunk], targets[chunk]
            counted = own != IGNORE_INDEX
            own = own - first
            # Without ranks a target beyond the vocabulary fails in `gather`, as it does in torch's cross entropy.
            here = (own >= 0) & (own < rows) if group else counted
            index = torch.where(here, own, 0)[:, None]

            scores = torch.mm(inputs, weight.t(), out=buffer[: inputs.shape[0]])
            if rows < weight.shape[0]:
                scores[:, rows:] = torch.finfo(scores.dtype).min  # padding: finite, or a rank of padding would give nan
            target_score = scores.gather(1, index)[:, 0].float()
            if not (for_hidden or for_weight):
                log_sum = scores.float().logsumexp(-1)
                probabilities = None
            else:
                largest = scores.amax(-1).float()
                probabilities = _softmax(scores)
                log_sum = largest - probabilities.amax(-1).log()  # the largest one's, 1/vocabulary at least
            local_sum = log_sum
            if group:
                log_sum, target_score = combine_ranks(local_sum, target_score, here, group)
            # What is ignored counts nothing, and is seen where it is not finite.
            total += torch.where(counted, log_sum - target_score, log_sum * 0).sum()
            if probabilities is None:
                continue
            if group or z_loss:
                probabilities *= ((local_sum - log_sum).exp() * (1 + 2 * z_loss * log_sum))[:, None]
            probabilities.scatter_(1, index, probabilities.gather(1, index) - here[:, None].float())
            gradient = probabilities if scores.dtype == torch.float32 else scores.copy_(probabilities)
            if for_hidden:
                torch.mm(gradient, weight, out=hidden_gradient[chunk]).masked_fill_(~counted[:, None], 0)
            if for_weight:
                learned = inputs.masked_fill(~counted[:, None], 0)
                exact = hidden.device.type == "cpu"  # fp32 products are the faster ones there
                _add_product(weight_gradient, probabilities if exact else gradient, learned, anew=start == 0)
    return total.float(), hidden_gradient, weight_gradient


def _softmax(scores: Tensor) -> Tensor:
    """fp32 softmax of each row; on a CPU in the place of scores that are fp32 themselves."""
    if scores.dtype == torch.float32 and scores.device.type == "cpu":
        return torch.softmax(scores, -1, out=scores)
    return torch.softmax(scores, -1, dtype=torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor, anew: bool) -> None:
    """total (V, H) fp32 += left.T (V, n) @ right (n, H); `anew`: what total held does not count."""
    if left.dtype == torch.float32:
        right = right.float()
        if anew:
            torch.mm(left.t(), right, out=total)
        else:
            total.addmm_(left.t(), right)
        return
    # Half precision on a GPU, with sums of fp32: some rows of the vocabulary at a time, for a small product.
    step = max(1, _PRODUCT_BYTES // (4 * total.shape[1]))
    for start in range(0, total.shape[0], step):
        block = slice(start, start + step)
        product = torch.mm(left[:, block].t(), right, out_dtype=torch.float32)
        if anew:
            total[block] = product
        else:
            total[block] += product


@_linear_cross_entropy.register_fake
def _shapes(hidden, weight, targets, z_loss, group_name, first, rows, chunk_rows, for_hidden, for_weight):
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if for_hidden else (0,)),
        weight.new_empty(weight.shape if for_weight else (0,), dtype=torch.float32),
    )


def _keep_gradients(ctx, inputs, output) -> None:
    _, hidden_gradient, weight_gradient = output
    ctx.mark_non_differentiable(hidden_gradient, weight_gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_gradient, weight_gradient)
    ctx.weight_dtype = inputs[1].dtype


def _scale_gradients(ctx, gradient, *_) -> tuple[Tensor | None, ...]:
    # Only create_graph=True records here, and the gradients kept are constants: their derivatives would be silently 0.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the loss of a model in train mode has no second derivative (create_graph=True): it is computed without "
            "whole logits. Call the model with skip_logits=False."
        )
    hidden_gradient, weight_gradient = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _scaled(hidden_gradient, gradient, hidden_gradient.dtype) if wanted[0] else None,
        _scaled(weight_gradient, gradient, ctx.weight_dtype) if wanted[1] else None,
        *(None,) * 8,
    )


def _scaled(tensor: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor * factor, computed in fp32 and rounded once; a factor in fp16 could vanish by itself."""
    if dtype == torch.float32:
        return tensor * factor
    if tensor.dtype == torch.float32:
        return torch.mul(tensor, factor, out=torch.empty_like(tensor, dtype=dtype))
    return (tensor.float() * factor).to(dtype)


_linear_cross_entropy.register_autograd(_scale_gradients, setup_context=_keep_gradients)
