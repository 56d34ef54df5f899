"""What the processes of `test_memory.py` run: a step, and then the bytes that model states really take."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.boosters.gemini import ChunkedModel
from tests.distributed import small_run
from tests.distributed.cases import boost
from tests.distributed.small_run import Layout


def model_states(layout: Layout, precision: str, accumulation: int, num_layers: int) -> dict[str, int]:
    """Bytes this rank holds after its first step, by what `--dry_run` calls them; gradients before that step ends."""
    run = small_run.run_config(layout, precision, accumulation)
    boosted = boost(run, num_layers=num_layers)
    batches = small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)
    boosted.forward_backward(next(batches))
    gradients = _bytes(_gradients(boosted))
    boosted.optimizer_step()
    parameters = _parameters(boosted)
    return {
        "parameters": _bytes(parameters),
        "gradients": gradients,
        "optimizer": _bytes(_optimizer_tensors(boosted)) - _bytes_shared(_optimizer_tensors(boosted), parameters),
    }


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address → bytes of the memory behind some tensors, each once."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local if t.numel()}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(_storages(tensors).values())


def _bytes_shared(tensors: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> int:
    others = _storages(others)
    return sum(size for address, size in _storages(tensors).items() if address in others)


def _parameters(boosted: Boosted) -> list[torch.Tensor]:
    if isinstance(boosted.model, ChunkedModel):
        return [chunk.payload for chunk in boosted.model.chunk_manager.get_chunks(boosted.model.fp16_params)]
    return list(boosted.module.parameters())


def _optimizer_tensors(boosted: Boosted) -> list[torch.Tensor]:
    """Masters and moments."""
    inner = boosted.optimizer.optim
    moments = [value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    if isinstance(boosted.model, ChunkedModel):
        masters = [chunk.payload for chunk in boosted.model.chunk_manager.get_chunks(boosted.model.fp32_params)]
    else:
        masters = [parameter for group in inner.param_groups for parameter in group["params"]]
    return [*masters, *moments]


def _gradients(boosted: Boosted) -> list[torch.Tensor]:
    if isinstance(boosted.model, ChunkedModel):
        chunks = boosted.model.chunk_manager.get_chunks(boosted.model.fp16_params)
        return [chunk.grad_chunk.payload for chunk in chunks if chunk.grad_chunk is not None]
    if hasattr(boosted.optimizer, "pid_to_grad_store"):  # the engine's ZeRO
        stores = boosted.optimizer.pid_to_grad_store.values()
        return [
            gradient
            for store in {id(store): store for store in stores}.values()
            for of_group in store._grads_of_params.values()
            for of_parameter in of_group.values()
            for gradient in of_parameter
            if gradient is not None
        ]
    return [parameter.grad for parameter in boosted.module.parameters() if parameter.grad is not None]
